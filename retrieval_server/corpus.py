"""Reads a JSONL corpus through a memory map: the file and the offsets of its lines stay on disk.

An index folder stores those offsets and the file's hash, so that a server is ready without reading the corpus. A file
with the recorded size and modification time counts as the same file; any other is read again.
"""

import hashlib
import json
import mmap
import threading
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from retrieval_server.errors import RetrievalError
from retrieval_server.id_map import IdMap
from retrieval_server.passages import LFS_POINTER, SeenIds, id_hash, read_id, read_passage
from retrieval_server.schemas import Document

Report = Callable[[str, int, int], None]
"""Called with (stage, done, total); total 0: unknown. Its exceptions are not caught."""

LINES = "corpus.lines"  # offsets of the lines, little-endian uint64
LINES_RECORD = "corpus.json"
IDS = "corpus.ids"  # rows by id; not written if each id is its row's number
_CHUNK = 16 << 20
_LONGEST_ROW = 12  # digits


def silent(stage: str, done: int, total: int) -> None:
    """Reports nothing."""


def _document(row: Any, number: int) -> Document:
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    passage, name = read_passage(row), read_id(row)
    return Document(
        id=str(number) if name is None else name,
        title=passage.title,
        text=passage.text,
        contents=passage.contents,
    )


class Corpus:
    """Documents by row number. Raises RetrievalError with the line number of an invalid row.

    `lines` is a folder that may hold the files of `save_lines`; without them, or if the corpus has changed, the whole
    file is read once.
    """

    def __init__(self, path: Path, *, lines: Path | None = None, report: Report = silent) -> None:
        self.path = path
        try:
            self._file = path.open("rb")
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as cause:
            raise RetrievalError(
                f"the corpus {path} can not be read: {cause}", remedy="give a JSONL file with at least one passage"
            ) from cause
        if self._map[: len(LFS_POINTER)] == LFS_POINTER:
            raise RetrievalError(
                f"the corpus {path} is a git-lfs pointer, not the file", remedy="fetch it: git lfs pull"
            )
        self._sha256: str | None = None
        self._ids_are_rows: bool | None = None  # None: not known
        self._ids: IdMap | None = None
        self._reading_ids = threading.Lock()
        self._offsets: Sequence[int] = (lines and self._saved_lines(lines)) or self._read_lines(report)

    def _identity(self) -> dict[str, int]:
        stat = self.path.stat()
        return {"size": stat.st_size, "changed_ns": stat.st_mtime_ns}

    def _saved_lines(self, folder: Path) -> Sequence[int] | None:
        try:
            record = json.loads((folder / LINES_RECORD).read_text(encoding="utf-8"))
            if {key: record[key] for key in ("size", "changed_ns")} != self._identity():
                return None
            with (folder / LINES).open("rb") as file:
                offsets = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)).cast("Q")
            # Both ends are checked, so that a truncated or foreign file is read again and not trusted.
            if len(offsets) != record["passages"] or offsets[-1] >= len(self._map) or self._broken(offsets):
                return None
            self._sha256 = str(record["sha256"])
            self._ids_are_rows = record.get("ids_are_rows")
            if self._ids_are_rows is False:
                self._ids = IdMap.open(folder / IDS, passages=len(offsets))
            return offsets
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _broken(self, offsets: Sequence[int]) -> bool:
        last = offsets[-1]
        return last > 0 and self._map[last - 1 : last] != b"\n"

    def _read_lines(self, report: Report) -> Sequence[int]:
        offsets, digest, position, size = array("Q"), hashlib.sha256(), 0, len(self._map)
        blank = b" \t\r\n\v\f"
        for chunk in range(0, size, _CHUNK):
            report("reading the corpus", chunk, size)
            until = min(chunk + _CHUNK, size)
            digest.update(memoryview(self._map)[chunk:until])
            while position < until:
                end = self._map.find(b"\n", position)
                end = size if end < 0 else end
                if self._map[position] not in blank or self._map[position:end].strip():
                    offsets.append(position)
                position = end + 1
        self._sha256 = digest.hexdigest()
        return offsets

    def save_lines(self, folder: Path) -> None:
        """Write the offsets, the rows by id and the file's hash into an existing folder, the record last."""
        (folder / LINES_RECORD).unlink(missing_ok=True)  # the old record describes other lines
        (folder / LINES).write_bytes(memoryview(self._offsets))  # pyright: ignore[reportArgumentType]
        if (ids := self._read_ids()) is not None:
            ids.save(folder / IDS)
        sizes = {"passages": len(self), "ids_are_rows": self._ids_are_rows}
        record = {**sizes, "sha256": self.sha256(), **self._identity()}
        (folder / LINES_RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, row: int) -> Document:
        start = self._offsets[row]
        end = self._map.find(b"\n", start)
        try:
            return _document(json.loads(self._map[start : end if end >= 0 else len(self._map)]), row)
        except ValueError as cause:
            raise RetrievalError(
                f"{self._place(row)} is not a passage: {cause}",
                remedy='one JSON object a line, with "id" and "contents" (title line, newline, text)',
            ) from cause

    def __iter__(self) -> Iterator[Document]:
        return (self[row] for row in range(len(self)))

    def cuts(self, size: int) -> list[int]:
        """The rows at which ranges of about `size` bytes of the file begin, and at the end the number of passages."""
        found = [0]
        while found[-1] < len(self):
            following = bisect_left(self._offsets, self._offsets[found[-1]] + size)
            found.append(max(following, found[-1] + 1))
        return found

    def _place(self, row: int) -> str:
        start = self._offsets[row]
        lines = sum(self._map[at : min(at + _CHUNK, start)].count(b"\n") for at in range(0, start, _CHUNK))
        return f"{self.path}:{lines + 1}"

    def refuse_double_ids(self, report: Report = silent) -> None:
        """Read every passage. Raises RetrievalError with both lines of an id that occurs twice."""
        seen = self._hashed_ids(report)
        if found := seen.twice(lambda: ((str(row), document.id) for row, document in enumerate(self))):
            name, second, first = found
            raise RetrievalError(
                f"{self._place(int(second))} has the id {name!r} of {self._place(int(first))}",
                remedy="give every passage a different id",
            )

    def row_of(self, name: str) -> int | None:
        """The row of the passage with that id; None if there is none.

        Reads all passages once if the index folder does not hold the rows by id.
        """
        if name.isdecimal() and len(name) <= _LONGEST_ROW:
            row = int(name)
            if row < len(self) and self[row].id == name:
                return row
        ids = self._read_ids()
        return (
            None if ids is None else next((row for row in ids.candidates(id_hash(name)) if self[row].id == name), None)
        )

    def _read_ids(self) -> IdMap | None:
        """The rows by id; None if each id is its row's number."""
        with self._reading_ids:
            if self._ids is None and not self._ids_are_rows:
                self._hashed_ids(silent)
            return self._ids

    def _hashed_ids(self, report: Report) -> SeenIds:
        seen, rows = SeenIds(), True
        for row, document in enumerate(self):
            seen.add(document.id)
            rows = rows and document.id == str(row)
            if row % 10_000 == 0:
                report("checking the ids", row, len(self))
        self._ids_are_rows, self._ids = rows, None if rows else IdMap.of(seen.hashes)
        return seen

    def sha256(self) -> str:
        """The hash of the file when its lines were read; an index records it to identify its corpus."""
        assert self._sha256 is not None
        return self._sha256

    def read_again(self, report: Report = silent) -> str:
        """The hash of the file as it is now; reads all of its bytes."""
        self._offsets = self._read_lines(report)
        return self.sha256()
