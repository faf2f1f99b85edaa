"""Keeps the answers of long jobs over the network, one line each on arrival, so a killed job asks nothing twice.

The first line records what the answers depend on: answers with other inputs are never mixed in. Rows stay on the
disk; only their offsets are in memory.
"""

import json
import os
from collections.abc import Iterable, Iterator, KeysView, Mapping
from pathlib import Path
from typing import Any, Self

from s3_agent.data.files.appended import AppendedLines
from s3_agent.data.files.whole import dump
from s3_agent.errors import DataError


class Checkpoint:
    """Rows by id in a file next to `path`; a context manager. Rows with other inputs (`made_of`) are discarded."""

    def __init__(self, path: Path, *, made_of: Mapping[str, Any]) -> None:
        self._path = path.with_name(path.name + ".partial.jsonl")
        self._header = (dump(made_of) + "\n").encode(errors="surrogatepass")
        self._offsets: dict[str, int] = {}

    def __enter__(self) -> Self:
        self._lines = AppendedLines(self._path)
        try:
            with self._path.open("rb") as lines:
                same = lines.readline() == self._header
                if same:
                    self._index(lines)
            if not same:
                self._lines.clear()
                self._lines.write(self._header)
        except BaseException:
            self._lines.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()

    def _index(self, lines: Iterable[bytes]) -> None:
        offset = len(self._header)
        for number, line in enumerate(lines, 2):
            try:
                self._offsets[json.loads(line)["id"]] = offset
            except (ValueError, KeyError, TypeError) as cause:
                raise DataError(
                    f"{self._path}:{number} is no kept answer: {cause}", remedy="take this line out; the others count"
                ) from cause
            offset += len(line)

    @property
    def ids(self) -> KeysView[str]:
        """What is answered."""
        return self._offsets.keys()

    def __len__(self) -> int:
        return len(self._offsets)

    def add(self, name: str, row: Mapping[str, Any]) -> None:
        """Keep one answer. Raises DataError if the disk is full; then nothing of the answer is kept."""
        line = (dump({"id": name, **row}) + "\n").encode(errors="surrogatepass")
        self._offsets[name] = self._lines.write(line)

    def rows(self, ids: Iterable[str]) -> Iterator[dict[str, Any]]:
        """The rows with these ids, in their order."""
        with self._path.open("rb") as file:
            for name in ids:
                file.seek(self._offsets[name])
                yield json.loads(file.readline().decode(errors="surrogatepass"))

    def remove(self) -> None:
        """Delete the rows, once they are stored elsewhere."""
        self._lines.close()
        os.unlink(self._path)
