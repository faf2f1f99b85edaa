"""The passages' vectors on disk: one memory-mapped array, filled shard by shard, so that a killed build continues.

A shard is valid once its line is in the record, which is written after the shard's bytes have reached the disk. The
line holds the shard's hash; a shard that does not match is computed again.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retrieval_server.corpus import Report

VECTORS = "vectors.npy"
RECORD = "vectors.jsonl"
SHARD = 4096  # passages; a kill loses at most one shard's encoding


def open_vectors(folder: Path) -> Any:
    """(passages, dimension), memory-mapped."""
    import numpy as np

    return np.load(folder / VECTORS, mmap_mode="r")


def _hash(rows: Any) -> str:
    return hashlib.sha256(memoryview(rows).cast("B")).hexdigest()


def _finished(folder: Path) -> dict[int, str]:
    """The hash of each shard in the record; a line that was cut by a kill is ignored."""
    finished: dict[int, str] = {}
    if (folder / RECORD).exists():
        for line in (folder / RECORD).read_text(encoding="utf-8").splitlines():
            try:
                shard = json.loads(line)
            except ValueError:
                continue
            finished[shard["start"]] = shard["sha256"]
    return finished


def _reserve(path: Path) -> None:
    """Allocate the file's disk space now. Raises OSError; a full disk at a later page write would end the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def fill(
    folder: Path,
    *,
    passages: int,
    dimension: int,
    dtype: str,
    rows: Callable[[int, int], Any],
    report: Report,
) -> Any:
    """The filled array. `rows(start, end)` gives the float vectors of those passages."""
    import numpy as np

    path, finished = folder / VECTORS, _finished(folder)
    if finished and path.exists():
        vectors = np.lib.format.open_memmap(path, mode="r+")
    else:
        (folder / RECORD).unlink(missing_ok=True)
        finished = {}
        vectors = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(passages, dimension))
    _reserve(path)
    with (folder / RECORD).open("a", encoding="utf-8") as record:
        record.write("\n" if record.tell() else "")  # ends a line that was cut by a kill
        for start in range(0, passages, SHARD):
            end = min(start + SHARD, passages)
            report("encoding passages", start, passages)
            if finished.get(start) == _hash(vectors[start:end]):
                continue
            vectors[start:end] = rows(start, end)
            vectors.flush()
            record.write(json.dumps({"start": start, "sha256": _hash(vectors[start:end])}) + "\n")
            record.flush()
            os.fsync(record.fileno())
    return open_vectors(folder)
