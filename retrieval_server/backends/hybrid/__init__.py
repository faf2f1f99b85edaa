"""Two or more indexes of one corpus, whose rankings are fused."""
