"""`python -m retrieval_server …` serves a corpus, `… index …` builds indexes, `… mcp …` serves tools over stdio.

Each command imports what it needs: the tools start without a server's packages.
"""

import sys


def main() -> int:
    """Run the command; the exit code."""
    command, arguments = "".join(sys.argv[1:2]), sys.argv[2:]
    if command == "index":
        from retrieval_server.indexing.command import app as index

        index(arguments, prog_name="python -m retrieval_server index")
    if command == "mcp":
        from retrieval_server.mcp.command import main as tools

        return tools(arguments)
    from retrieval_server.app.command import main as serve

    return serve()


if __name__ == "__main__":
    sys.exit(main())
