"""The memory that a build takes, and how many processes it may therefore run. `index plan` reports it."""

import os

MOST_PROCESSES = 8
# Bytes: of each process that analyses; of the process that starts them by itself; and what that one holds for each
# passage, which is the offsets and the rows by id, and before, while it checks that no id occurs twice, sorted hashes.
_OF_PROCESS, _OF_PARENT, _OF_PASSAGE, _OF_CHECK = 180_000_000, 100_000_000, 20, 44
_MOST_BYTES = 2_000_000_000


def processes(passages: int) -> int:
    """How many processes analyse a corpus of so many passages: one for each core that this process may use, but only as
    many as keep the build below 2 GB, and at least one."""
    fit = (_MOST_BYTES - _OF_PARENT - _OF_PASSAGE * passages) // _OF_PROCESS
    return max(1, min(MOST_PROCESSES, len(os.sched_getaffinity(0)), fit))


def build_bytes(passages: int, running: int) -> int:
    """The most memory that a build takes with `running` processes: while it checks the ids, or analyses."""
    return _OF_PARENT + max(_OF_CHECK * passages, _OF_PASSAGE * passages + _OF_PROCESS * running)


FORMULA = (
    f"{_OF_PARENT / 1e9:g} GB and the larger of {_OF_CHECK} bytes a passage, and {_OF_PASSAGE} bytes a passage with "
    f"{_OF_PROCESS / 1e9:g} GB for each process"
)
"""What `build_bytes` computes, in words."""
