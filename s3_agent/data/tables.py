"""Rows of files that people bring: JSON lines, JSON, CSV and Parquet, each with the place to name in an error.

One row is read at a time, so a corpus of any length passes through little memory.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from s3_agent.errors import DataError

Row = dict[str, Any]
Placed = tuple[str, Row]
"""Where a row is (`file:line`), and the row."""

FORMATS = (".jsonl", ".jsonl.gz", ".json", ".csv", ".tsv", ".parquet")
_BATCH = 8192


@contextmanager
def _text(path: Path) -> Iterator[IO[str]]:
    with path.open("rb") as file:
        plain = gzip.GzipFile(fileobj=file) if path.name.endswith(".gz") else file
        with io.TextIOWrapper(io.BufferedReader(plain), encoding="utf-8-sig", newline="") as text:  # pyright: ignore[reportArgumentType]
            yield text


def suffix_of(path: Path) -> str:
    """The known ending of a file's name, or ''."""
    return next((suffix for suffix in FORMATS if path.name.lower().endswith(suffix)), "")


def read_rows(path: Path) -> Iterator[Placed]:
    """The rows of a file by its ending. Raises DataError with the line or row at fault."""
    readers = {".csv": _csv, ".tsv": _csv, ".parquet": _parquet, ".json": _json}
    suffix = suffix_of(path)
    if not suffix:
        raise DataError(f"{path} is no kind of file that can be read", remedy="give one of " + ", ".join(FORMATS))
    try:
        yield from readers.get(suffix, _jsonl)(path)
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


def _json(path: Path) -> Iterator[Placed]:
    with _text(path) as file:
        try:
            rows = json.load(file)
        except ValueError as cause:
            raise DataError(f"{path} is not JSON: {cause}", remedy="give a list of objects") from cause
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} is not a list of JSON objects", remedy="give a list of objects, or JSON lines")
    for number, row in enumerate(rows, 1):
        yield f"{path}, item {number}", row


def _csv(path: Path) -> Iterator[Placed]:
    csv.field_size_limit(1 << 30)
    with _text(path) as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        try:
            for row in reader:
                place = f"{path}:{reader.line_num}"
                if None in row or None in row.values():
                    raise DataError(
                        f"{place} has not as many fields as the header", remedy="quote fields that hold the separator"
                    )
                yield place, row
        except csv.Error as cause:
            raise DataError(f"{path}:{reader.line_num} is not CSV: {cause}", remedy="quote what needs it") from cause


def _parquet(path: Path) -> Iterator[Placed]:
    import pyarrow
    import pyarrow.parquet

    path.stat()
    try:
        number = 0
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except pyarrow.ArrowException as cause:
        raise DataError(f"{path} is not a whole Parquet file: {cause}", remedy="fetch or write it again") from cause
