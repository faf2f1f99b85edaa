"""A JSONL corpus, read through a memory map: the file stays on disk, only line offsets are held."""

import hashlib
import json
import mmap
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retrieval_server.errors import RetrievalError
from retrieval_server.schemas import Document


def _document(row: Any, number: int) -> Document:
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    contents = row.get("contents")
    if isinstance(contents, str):
        title, _, text = contents.partition("\n")
        title = str(row.get("title") or title.strip('"'))
        return Document(
            id=str(row.get("id", number)), title=title, text=str(row.get("text") or text), contents=contents
        )
    if isinstance(row.get("title"), str) and isinstance(row.get("text"), str):
        contents = f'"{row["title"]}"\n{row["text"]}'
        return Document(id=str(row.get("id", number)), title=row["title"], text=row["text"], contents=contents)
    raise ValueError("needs `contents`, or `title` and `text`")


class Corpus:
    """Documents by row number. Raises RetrievalError with the line number of a row that can not be used."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = path.open("rb")
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as cause:
            raise RetrievalError(
                f"the corpus {path} can not be read: {cause}", remedy="give a JSONL file with at least one passage"
            ) from cause
        self._offsets = array("Q")
        position = 0
        while position < len(self._map):
            end = self._map.find(b"\n", position)
            end = len(self._map) if end < 0 else end
            if self._map[position:end].strip():
                self._offsets.append(position)
            position = end + 1

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, row: int) -> Document:
        start = self._offsets[row]
        end = self._map.find(b"\n", start)
        try:
            return _document(json.loads(self._map[start : end if end >= 0 else len(self._map)]), row)
        except ValueError as cause:
            line = self._map[:start].count(b"\n") + 1
            raise RetrievalError(
                f"{self._path}:{line} is not a passage: {cause}",
                remedy='one JSON object a line, with "id" and "contents" (title line, newline, text)',
            ) from cause

    def __iter__(self) -> Iterator[Document]:
        return (self[row] for row in range(len(self)))

    def sha256(self) -> str:
        """The hash of the file's bytes, by which an index knows its corpus."""
        return hashlib.sha256(self._map).hexdigest()
