"""Answers of long jobs over the network, one line each as it comes, so that a killed job asks nothing twice.

The first line says what the answers depend on: answers of other parts are never mixed in. Rows stay on the disk; only
where they begin is held.
"""

import json
import os
from collections.abc import Iterable, Iterator, KeysView, Mapping
from pathlib import Path
from typing import Any, Self

from s3_agent.data.files import cut_torn_line, dump, room_kept


class Checkpoint:
    """Rows by id beside `path`, a context manager. Begun anew when those there have another `made_of`."""

    def __init__(self, path: Path, *, made_of: Mapping[str, Any]) -> None:
        self._path = path.with_name(path.name + ".partial.jsonl")
        self._header = dump(made_of) + "\n"
        self._offsets: dict[str, int] = {}

    def __enter__(self) -> Self:
        with room_kept(self._path.parent):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            cut_torn_line(self._path)
            self._file = self._path.open("a+", encoding="utf-8")
            self._file.seek(0)
            if self._file.readline() != self._header:
                self._file.truncate(0)
                self._write(self._header)
            self._index()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _write(self, line: str) -> None:
        with room_kept(self._path):
            self._file.write(line)
            self._file.flush()

    def _index(self) -> None:
        self._file.seek(0)
        offset = len(self._file.readline().encode())
        while line := self._file.readline():
            self._offsets[json.loads(line)["id"]] = offset
            offset += len(line.encode())
        self._end = offset

    @property
    def ids(self) -> KeysView[str]:
        """What is answered."""
        return self._offsets.keys()

    def __len__(self) -> int:
        return len(self._offsets)

    def add(self, name: str, row: Mapping[str, Any]) -> None:
        """Keep one answer. Raises DataError when there is no room for it."""
        line = dump({"id": name, **row}) + "\n"
        self._write(line)
        self._offsets[name] = self._end
        self._end += len(line.encode())

    def rows(self, ids: Iterable[str]) -> Iterator[dict[str, Any]]:
        """The rows of these ids, in their order."""
        with self._path.open("rb") as file:
            for name in ids:
                file.seek(self._offsets[name])
                yield json.loads(file.readline())

    def remove(self) -> None:
        """Forget the rows, once they are elsewhere."""
        self._file.close()
        os.unlink(self._path)
