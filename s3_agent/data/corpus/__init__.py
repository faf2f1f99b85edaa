"""Converts documents of any kind into the passages of a corpus."""
