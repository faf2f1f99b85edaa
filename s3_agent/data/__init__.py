"""Tasks, corpora and what is prepared for a run: stages with manifests, published files in and out, the RAG cache."""
