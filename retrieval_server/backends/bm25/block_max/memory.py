"""The memory that a build takes, and how many processes it may therefore run. `index plan` reports it."""

import os

MOST_PROCESSES = 8
# Bytes: the process that builds; each process that analyses; the merge, with a slice of the postings and numba's
# compiler.
_OF_PARENT, _OF_PROCESS, _OF_MERGE = 100_000_000, 180_000_000, 340_000_000
# Bytes a passage: offsets and rows by id while it analyses; sorted hashes while it checks that ids are unique; a term
# that nearly all passages have while it merges.
_OF_PASSAGE, _OF_CHECK, _OF_MERGED = 20, 44, 24
_MOST_BYTES = 2_000_000_000


def processes(passages: int) -> int:
    """How many processes analyse a corpus of so many passages: one for each core that this process may use, but only as
    many as keep the build below 2 GB, and at least one."""
    fit = (_MOST_BYTES - _OF_PARENT - _OF_PASSAGE * passages) // _OF_PROCESS
    return max(1, min(MOST_PROCESSES, len(os.sched_getaffinity(0)), fit))


def build_bytes(passages: int, running: int) -> int:
    """The most memory that a build takes with `running` processes: while it checks the ids, analyses, or merges."""
    analysing, merging = _OF_PASSAGE * passages + _OF_PROCESS * running, _OF_MERGED * passages + _OF_MERGE
    return _OF_PARENT + max(_OF_CHECK * passages, analysing, merging)


FORMULA = (
    f"{_OF_PARENT / 1e9:g} GB and the largest of {_OF_CHECK} bytes a passage, {_OF_PASSAGE} bytes a passage with "
    f"{_OF_PROCESS / 1e9:g} GB for each process, and {_OF_MERGED} bytes a passage with {_OF_MERGE / 1e9:g} GB"
)
"""What `build_bytes` computes, in words."""
