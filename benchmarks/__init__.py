"""Benchmarks of s3-agent: each module prints JSON (`python benchmarks/NAME.py`)."""
