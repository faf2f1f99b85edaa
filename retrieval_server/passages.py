"""Reads a row of any corpus as a passage, with the same rules for the server, the data pipeline and the client.

| fields of the row | title | text |
|---|---|---|
| `title` and `content` (MedRAG, whose own `contents` has no title line) | `title` | `content` |
| `contents` with a title line (wiki-18), a blank line may follow it (pyserini) | the first line | the rest |
| `contents` of one line | `title` if the row has one, else empty | `contents` |
| `title` and `text` (BEIR, DPR); only `text` or `content` (BrowseComp-Plus) | `title` or empty | that field |

A title that is null or NaN is empty.
"""

from array import array
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

SCHEMA = "a passage needs `contents` (title line, newline, text), `text`, or `title` and `text`"
ID_NAMES = ("id", "_id", "docid", "doc_id", "passage_id", "pid")
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""The beginning of a file that git-lfs has not fetched yet."""


class Parts(NamedTuple):
    """One passage. `title_line` is the title as in `contents`, with its quotes; empty without a title line."""

    title: str
    text: str
    contents: str
    title_line: str


def whole_text(text: str) -> str:
    """`text` with each half of a surrogate pair, which no UTF-8 text can hold, replaced by a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _unquoted(line: str) -> str:
    return line[1:-1] if len(line) > 1 and line[0] == line[-1] == '"' else line


def _split(contents: str) -> tuple[str, str]:
    """Title line and text; the title line is empty if `contents` has none."""
    line, newline, text = contents.partition("\n")
    quoted = _unquoted(line) != line
    if not newline or not (text.strip() or quoted):
        return "", contents
    return line, text if quoted else text.lstrip("\n")


def contents_of(title: str, text: str) -> str:
    """The published form: quoted title, newline and text; a text of one line without a title stays as it is."""
    return text if not title and _split(text) == ("", text) else f'"{title}"\n{text}'


def read_passage(row: Mapping[str, Any]) -> Parts:
    """The passage of a row. Raises ValueError that describes what is wrong with its fields."""
    values: dict[str, str] = {}
    for name in ("title", "content", "contents", "text"):
        value = row.get(name)
        if isinstance(value, str):
            values[name] = whole_text(value)
        elif value is not None and value == value:  # NaN is pandas' word for a missing text
            raise ValueError(f"`{name}` is not a text but {type(value).__name__}")
    title = values.get("title", "")
    if "contents" in values and not ("title" in row and "content" in values):
        contents = values["contents"]
        line, text = _split(contents)
        written = _unquoted(line)
        return Parts(written if line else title, text, contents, line if written else "")
    text = values.get("text") if "text" in values else values.get("content")
    if text is None:
        raise ValueError(f"it has the fields {', '.join(map(repr, row)) or 'none'}; {SCHEMA}")
    return Parts(title, text, contents_of(title, text), title)


def read_id(row: Mapping[str, Any], names: tuple[str, ...] = ID_NAMES) -> str | None:
    """The id of a row, from the first field of `names` that has one; null, NaN and an empty text do not count.

    Raises ValueError for an id that is neither a text nor a number.
    """
    for name in names:
        value = row.get(name)
        if value is None or value == "" or value != value:
            continue
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError(f"`{name}` is no id but {type(value).__name__}")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return whole_text(str(value))
    return None


class SeenIds:
    """Finds an id that occurs twice among any number of ids, with eight bytes of memory for each."""

    def __init__(self) -> None:
        self.hashes = array("Q")

    def add(self, name: str) -> None:
        """One more."""
        self.hashes.append(id_hash(name))

    def twice(self, again: Callable[[], Iterable[tuple[str, str]]]) -> tuple[str, str, str] | None:
        """The first id that occurs twice, with its second and its first place; None when all differ.

        `again` yields (place, id) of all added ids; it is called only if two hashes are equal.
        """
        import numpy

        ordered = numpy.sort(numpy.frombuffer(self.hashes, dtype=numpy.uint64))
        suspected = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
        if not suspected:
            return None
        first: dict[str, str] = {}
        for place, name in again():
            if id_hash(name) in suspected:
                if name in first:
                    return name, place, first[name]
                first[name] = place
        return None


def id_hash(name: str) -> int:
    """64 bits of an id."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")
