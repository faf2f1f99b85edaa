"""A plug-in for s3-agent. Each module brings one thing, which `pyproject.toml` registers by name."""
