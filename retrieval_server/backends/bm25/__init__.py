"""BM25 with Lucene's formula and English analysis, without Java."""
