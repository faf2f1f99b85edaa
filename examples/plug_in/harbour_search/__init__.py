"""A plug-in for s3-agent. Each module defines one variant, which `pyproject.toml` registers by name."""
