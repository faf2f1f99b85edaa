"""From documents of any kind to the passages of a corpus."""
