"""Finds the row of a passage by its id, from a file that is mapped into memory: 12 bytes for each passage.

`Corpus` writes it with the offsets of its lines. It holds hashes, so a found row is only a candidate until its id has
been compared.
"""

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

_ROWS = 1 << 32  # rows are stored in four bytes


class IdMap:
    """Sorted 64-bit hashes of ids (`passages.id_hash`), and the row of each."""

    def __init__(self, hashes: Any, rows: Any) -> None:
        self._hashes, self._rows = hashes, rows

    @classmethod
    def of(cls, hashes: "array[int]") -> Self:
        """From the hash of each row's id, in the order of rows."""
        import numpy as np

        assert len(hashes) < _ROWS
        given = np.frombuffer(hashes, dtype=np.uint64)
        order = np.argsort(given, kind="stable")
        return cls(given[order], order.astype(np.uint32))

    @classmethod
    def open(cls, path: Path, *, passages: int) -> Self | None:
        """The saved map; None if there is none, or one of another number of passages."""
        import numpy as np

        if not path.is_file() or path.stat().st_size != 12 * passages:
            return None
        hashes = np.memmap(path, dtype="<u8", mode="r", shape=(passages,))
        return cls(hashes, np.memmap(path, dtype="<u4", mode="r", offset=8 * passages, shape=(passages,)))

    def save(self, path: Path) -> None:
        """Write the file that `open` maps."""
        with path.open("wb") as file:
            file.write(memoryview(self._hashes.astype("<u8", copy=False)).cast("B"))
            file.write(memoryview(self._rows.astype("<u4", copy=False)).cast("B"))

    def candidates(self, hashed: int) -> Iterator[int]:
        """The rows whose id has this hash, in order."""
        import numpy as np

        value = np.uint64(hashed)
        start, end = (int(np.searchsorted(self._hashes, value, side=side)) for side in ("left", "right"))
        return (int(row) for row in self._rows[start:end])
