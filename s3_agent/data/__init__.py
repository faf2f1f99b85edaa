"""Task files, corpora, and everything prepared for a run: stages with manifests, published files, the RAG cache."""
