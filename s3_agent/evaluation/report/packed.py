"""Lists of a report that are too long for memory: packed in parts, which the page unpacks one at a time as well."""

import gzip
import json
from collections.abc import Iterator
from typing import Any

PART = 500
"""Items of a part: small enough to be unpacked in some milliseconds, large enough to be packed well."""


def pack(value: Any) -> bytes:
    """`value` as compressed JSON; halves of characters become question marks."""
    return gzip.compress(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"), compresslevel=6, mtime=0)


def unpack(part: bytes) -> Any:
    """The value of a part."""
    return json.loads(gzip.decompress(part))


class Packed:
    """A list of JSON values that only grows. At most PART of them are in memory as objects."""

    def __init__(self) -> None:
        self._full: list[bytes] = []
        self._open: list[Any] = []

    def append(self, value: Any) -> None:
        """Add one value."""
        self._open.append(value)
        if len(self._open) == PART:
            self._full.append(pack(self._open))
            self._open = []

    def parts(self) -> Iterator[bytes]:
        """The values packed, PART of them in each part but the last."""
        yield from self._full
        if self._open:
            yield pack(self._open)

    def __len__(self) -> int:
        return PART * len(self._full) + len(self._open)

    def __iter__(self) -> Iterator[Any]:
        for part in self._full:
            yield from unpack(part)
        yield from self._open
