"""Agents for tests of the pool: the kinds that users write, and the ways in which they fail."""
