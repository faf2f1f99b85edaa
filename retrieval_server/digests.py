"""Tells indexes made elsewhere apart by their contents, without reading all of a file that may be larger than memory.

A fingerprint of answers holds such a digest: another index in the same place gives other answers.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retrieval_server.errors import RetrievalError

PIECE_BYTES, PIECES = 1 << 20, 64
"""Of a larger file as many pieces are read, at equal distances, the first and the last included."""
_LOCK = "write.lock"  # left in a Lucene folder by whoever wrote it


def digest_of(path: Path) -> dict[str, Any]:
    """The bytes of a file, or of all files in a folder, and a SHA-256 of their names, sizes and pieces.

    Raises RetrievalError if it can not be read.
    """
    digest, size = hashlib.sha256(), 0
    try:
        files = [path] if path.is_file() else sorted(_files(path))
        if not files:
            raise FileNotFoundError(f"there is no file at {path}")
        for file in files:
            size += (own := file.stat().st_size)
            name = "" if file == path else file.relative_to(path).as_posix()
            digest.update(f"{name}\n{own}\n".encode())
            with file.open("rb") as opened:
                for start in _starts(own):
                    opened.seek(start)
                    digest.update(opened.read(PIECE_BYTES))
    except OSError as cause:
        raise RetrievalError(
            f"the index {path} can not be read: {cause}", remedy="give the path of an index that exists"
        ) from cause
    return {"bytes": size, "sha256": digest.hexdigest()}


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and path.name != _LOCK)


def _starts(size: int) -> Iterator[int]:
    if size <= PIECE_BYTES * PIECES:
        return iter(range(0, size, PIECE_BYTES))
    return (number * (size - PIECE_BYTES) // (PIECES - 1) for number in range(PIECES))
