"""BM25 with block-max pruning: a compressed index that is built in bounded memory searched without reading all."""

RECORD = "block_max.json"
"""Describes the arrays of an index; every index of this engine has it."""
MERGED = "block_max.merged"
"""A build writes it when all arrays are whole; the parts that they were made from may be gone then."""
