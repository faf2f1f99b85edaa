"""Vectors of an encoder, searched by inner product with FAISS or torch."""
