"""Answers of frozen models that are kept: one call for each question, shared by processes."""
