"""Paired tests and intervals over the questions of an evaluation."""
