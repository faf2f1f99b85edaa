"""Existing Lucene indexes, searched with pyserini."""
