"""An existing Lucene index, searched through pyserini."""
