"""Rerankers: models and services that score the best passages of an index again."""
