"""Reads rows from users' files (JSON lines, JSON, CSV, TSV, Parquet), each with its place for error messages.

One row is read at a time, so a corpus of any length needs little memory.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from s3_agent.data.files.whole import refuse_lfs_pointer
from s3_agent.errors import DataError

Row = dict[str, Any]
Placed = tuple[str, Row]
"""The place of a row (`file:line`), and the row."""

FORMATS = (
    *(".jsonl", ".jsonl.gz", ".ndjson", ".json", ".json.gz"),
    *(".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet"),
)
_BATCH = 8192
_QUOTED = re.compile(r'"((?:[^"]++|"")*+)"(?=\t|\Z)')
_OPEN = re.compile(r'"(?:[^"]++|"")*+')
_MOST_LINES = 10_000  # lines of one TSV row at most: an unclosed quote must not make reading quadratic
_BESIDE = ("readme", "license", "dataset_info", "dataset_dict", "state.json")
"""Prefixes of the names of files that accompany the rows of a data set."""
_RELEASED = ("Data", "data", "questions", "rows", "examples")
"""The names under which a release in one JSON object holds its rows."""


@contextmanager
def _text(path: Path) -> Iterator[IO[str]]:
    with path.open("rb") as file:
        plain = gzip.GzipFile(fileobj=file) if path.name.endswith(".gz") else file
        with io.TextIOWrapper(io.BufferedReader(plain), encoding="utf-8-sig", newline="") as text:  # pyright: ignore[reportArgumentType]
            yield text


def suffix_of(path: Path) -> str:
    """The known extension of a file's name, or ''."""
    return next((suffix for suffix in FORMATS if path.name.lower().endswith(suffix)), "")


def stem_of(path: Path) -> str:
    """A file's name without its known extension."""
    return path.name[: len(path.name) - len(suffix_of(path))]


def is_beside(path: Path) -> bool:
    """Whether a file only describes a data set and holds none of its rows."""
    return path.name.lower().startswith(_BESIDE)


def row_files(path: Path) -> list[Path]:
    """The files of rows at `path`: the file itself, or those of a folder (shards), sorted; empty if there are none."""
    if not path.is_dir():
        return [path]
    return sorted(
        file
        for file in path.rglob("*")
        if file.is_file()
        and suffix_of(file)
        and not is_beside(file)
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )


def read_rows(path: Path) -> Iterator[Placed]:
    """The rows of a file, read by its extension. Raises DataError with the wrong line or row."""
    readers = {".csv": _csv, ".tsv": _tsv, ".parquet": parquet_rows, ".json": _json}
    suffix = suffix_of(path)
    if not suffix:
        kind = "a folder" if path.is_dir() else "not a readable kind of file"
        raise DataError(f"{path} is {kind}", remedy="give one of " + ", ".join(FORMATS))
    try:
        refuse_lfs_pointer(path)
        yield from readers.get(suffix.removesuffix(".gz"), _jsonl)(path)
    except FileNotFoundError as cause:
        raise DataError(f"{path} is missing", remedy="check its name") from cause
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as cause:
        raise DataError(
            f"{path} can not be read: {cause}", remedy="it may be cut short or not UTF-8: fetch or save it again"
        ) from cause


def _jsonl(path: Path) -> Iterator[Placed]:
    with _text(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}:{number}", _object(line, f"{path}:{number}")


def _object(line: str, place: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as cause:
        raise DataError(f"{place} is not JSON: {cause}", remedy="one JSON object a line") from cause
    if not isinstance(row, dict):
        raise DataError(f"{place} is not a JSON object", remedy="one JSON object a line")
    return row


def _holds_lines(file: IO[str]) -> bool:
    """Whether the first non-blank line is a complete object and more lines follow."""
    first = next((line for line in file if line.strip()), "")
    try:
        return first.lstrip().startswith("{") and bool(json.loads(first)) and any(line.strip() for line in file)
    except ValueError:
        return False


def _json(path: Path) -> Iterator[Placed]:
    with _text(path) as file:
        lines = _holds_lines(file)
    if lines:
        yield from _jsonl(path)
        return
    with _text(path) as file:
        try:
            rows = json.load(file)
        except ValueError as cause:
            raise DataError(f"{path} is not JSON: {cause}", remedy="give a list of objects") from cause
    if isinstance(rows, dict):
        # A release in one object holds its rows under one name: TriviaQA's `Data`, SQuAD's `data`.
        rows = next((rows[name] for name in _RELEASED if isinstance(rows.get(name), list)), [rows])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} is not a list of JSON objects", remedy="give a list of objects, or JSON lines")
    for number, row in enumerate(rows, 1):
        yield f"{path}, item {number}", row


def _csv(path: Path) -> Iterator[Placed]:
    csv.field_size_limit(1 << 30)
    with _text(path) as file:
        lines: list[str] = []
        reader = csv.reader((lines.append(line) or line for line in file), strict=True)
        header: list[str] | None = None
        try:
            for fields in reader:
                place = f"{path}:{reader.line_num - len(lines) + 1}"
                if header is None:
                    header = fields or None
                elif fields:
                    if len(fields) != len(header):
                        raise _uneven(place)
                    if len(lines) > 1 and _numbered_rows(lines, width=len(header)):
                        raise _joined(place, len(lines) - 1)
                    yield place, dict(zip(header, fields, strict=True))
                lines.clear()
        except csv.Error as cause:
            raise DataError(f"{path}:{reader.line_num} is not CSV: {cause}", remedy="quote what needs it") from cause


def _numbered_rows(lines: list[str], *, width: int) -> bool:
    """Whether each line that a quote joins is a complete row, with a different number in its first field.

    A text of several lines contains commas too, so the number of fields is no evidence.
    """
    rows = [line.rstrip("\r\n").split(",") for line in lines]
    return all(len(row) == width and row[0].isdecimal() for row in rows) and len({row[0] for row in rows}) == len(rows)


def _joined(place: str, more: int) -> DataError:
    return DataError(
        f"{place}: a quote opens a field here and closes one {more} lines below, and each of these lines is a row by "
        "itself: it is unclear which is meant",
        remedy="quote such fields and double the quotes inside them, or save the file as JSON lines",
    )


def _uneven(place: str) -> DataError:
    return DataError(f"{place} has not as many fields as the header", remedy="quote fields that hold the separator")


class _Lines:
    """The numbered lines of a file; lines can be put back."""

    def __init__(self, file: IO[str]) -> None:
        self._file = enumerate(file, 1)
        self._back: deque[tuple[int, str]] = deque()

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return self

    def __next__(self) -> tuple[int, str]:
        return self._back.popleft() if self._back else next(self._file)

    def put_back(self, lines: list[tuple[int, str]]) -> None:
        self._back.extendleft(reversed(lines))


def _tsv(path: Path) -> Iterator[Placed]:
    with _text(path) as file:
        lines = _Lines(file)
        header: list[str] | None = None
        for number, line in lines:
            if not line.strip("\r\n"):
                continue
            if header is None:
                header = _quoted_fields(line)[0] or _plain_fields(line)
            else:
                fields = _tsv_row(line, lines, width=len(header), place=f"{path}:{number}")
                yield f"{path}:{number}", dict(zip(header, fields, strict=True))


def _plain_fields(line: str) -> list[str]:
    return line.rstrip("\r\n").split("\t")


def _quoted_fields(text: str) -> tuple[list[str] | None, bool]:
    """The fields of one row with quotes read as in CSV, None if that is impossible; and whether a quote is open."""
    text, fields, at = text.rstrip("\r\n"), [], 0
    while True:
        if text.startswith('"', at):
            found = _QUOTED.match(text, at)
            if found is None:
                return None, _OPEN.fullmatch(text, at) is not None
            fields.append(found[1].replace('""', '"'))
            end = found.end()
        else:
            end = text.find("\t", at)
            end = len(text) if end < 0 else end
            fields.append(text[at:end])
        if end == len(text):
            return fields, False
        at = end + 1


def _tsv_row(line: str, lines: _Lines, *, width: int, place: str) -> list[str]:
    """The fields of the row that begins with `line`; `lines` yields the lines after it.

    Some writers quote fields as in CSV (DPR's passages), others write quotes literally (MS MARCO). A quote joins lines
    only if they are not rows by themselves. Raises DataError if both readings are possible.
    """
    plain = _plain_fields(line)
    fields, is_open = _quoted_fields(line)
    text, more = line, list[tuple[int, str]]()
    while is_open and len(more) < _MOST_LINES and (following := next(lines, None)) is not None:
        more.append(following)
        text += following[1]
        if '"' in following[1]:
            fields, is_open = _quoted_fields(text)
    if fields is None or len(fields) != width:
        lines.put_back(more)
        if len(plain) != width:
            raise _uneven(place)
        return plain
    if more and len(plain) == width and all(len(_plain_fields(each)) == width for _, each in more):
        raise _joined(place, len(more))
    return fields


def parquet_rows(path: Path, *, wanted: Callable[[str], bool] = lambda column: True) -> Iterator[Placed]:
    """The rows of a Parquet file, of the columns that are `wanted` by path (`docs.list.element.id`).

    Raises DataError for a file that is not complete.
    """
    import pyarrow
    import pyarrow.parquet

    path.stat()
    try:
        number = 0
        with pyarrow.parquet.ParquetFile(path) as file:
            paths = [file.schema.column(column).path for column in range(len(file.schema))]
            for batch in file.iter_batches(_BATCH, columns=[column for column in paths if wanted(column)]):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except pyarrow.ArrowException as cause:
        raise DataError(f"{path} is not a whole Parquet file: {cause}", remedy="fetch or write it again") from cause
