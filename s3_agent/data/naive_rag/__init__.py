"""Naive RAG over the training questions: passages, answers, their scores, and the cache that keeps them."""
