"""`python -m s3_agent.cli`: the same as the command `s3-agent`."""

from s3_agent.cli.main import main

if __name__ == "__main__":
    main()
