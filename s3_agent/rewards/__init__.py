"""Pure functions from an answer to a score."""
