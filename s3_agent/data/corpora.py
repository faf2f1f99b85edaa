"""From any form of corpus to the one that is served: JSON lines of id, title, text, contents.

`contents` is the quoted title, a newline and the text (spec §5.3), whichever of the forms in use a row had. Everything
streams; a killed conversion goes on behind its last whole line.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from s3_agent.data.files import Report, grow_rows, silent
from s3_agent.data.splitting import Splitter
from s3_agent.data.tables import Placed, Row, read_rows
from s3_agent.errors import DataError
from s3_agent.types import whole_text

Reader = Callable[[Row], tuple[str, str, str]]
"""Takes a row; gives (title, text, contents)."""

SCHEMA = "a passage needs `contents` (title line, newline, text), or `title` and `text`"


def _texts(row: Row, *names: str) -> list[str]:
    values = [row[name] for name in names]
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, str):
            raise ValueError(f"`{name}` is not a text but {type(value).__name__}")
    return values


def _name(row: Row, number: int) -> str:
    return whole_text(str(number if row.get("id") in (None, "") else row["id"]))


def quoted(title: str, text: str) -> str:
    """The published form of a passage."""
    return f'"{title}"\n{text}'


def _title_text(name: str) -> Reader:
    def read(row: Row) -> tuple[str, str, str]:
        title, text = _texts(row, "title", name)
        return title, text, quoted(title, text)

    return read


def _contents(row: Row) -> tuple[str, str, str]:
    [contents] = _texts(row, "contents")
    title, _, text = contents.partition("\n")
    return title.strip('"'), text, contents


def schema_of(row: Row) -> Reader:
    """How to read rows like this one. Raises ValueError that names the fields there are.

    `title` with `content` is MedRAG's form, whose own `contents` has no title line; it goes before `contents`.
    """
    for names, reader in (
        (("title", "content"), _title_text("content")),
        (("contents",), _contents),
        (("title", "text"), _title_text("text")),
    ):
        if all(name in row for name in names):
            return reader
    raise ValueError(f"it has the fields {', '.join(map(repr, row)) or 'none'}; {SCHEMA}")


def passages_of(
    rows: Iterable[Placed], *, splitter: Splitter | None = None, left_out: Callable[[str], None] | None = None
) -> Iterator[Row]:
    """Passages of rows of one schema, detected at the first; long ones cut by `splitter`, ids kept.

    A row without an id gets its number. `left_out` is told the place of a row without text; without it such rows stay,
    since an index counts them. Raises DataError with the place of a row that does not fit.
    """
    reader: Reader | None = None
    for number, (place, row) in enumerate(rows):
        try:
            reader = reader or schema_of(row)
            title, text, contents = map(whole_text, reader(row))
        except (ValueError, KeyError) as cause:
            problem = f"it lacks {cause}" if isinstance(cause, KeyError) else str(cause)
            raise DataError(f"{place} is not a passage: {problem}", remedy=SCHEMA) from cause
        if left_out is not None and not text.strip():
            left_out(place)
            continue
        name = _name(row, number)
        pieces = [text] if splitter is None else splitter.pieces(text)
        if len(pieces) == 1:
            yield {"id": name, "title": title, "text": text, "contents": contents}
        else:
            for part, piece in enumerate(pieces, 1):
                yield {"id": f"{name}#{part}", "title": title, "text": piece, "contents": quoted(title, piece)}


def convert_corpus(
    sources: Sequence[Path], corpus: Path, *, made_of: dict[str, Any], drop_blank: bool, report: Report = silent
) -> dict[str, int]:
    """Write the corpus out of files of rows, in their order; how many passages, and how many rows had no text.

    Raises DataError, also for an id that occurs twice.
    """
    blank = 0

    def left_out(_: str) -> None:
        nonlocal blank
        blank += 1

    def rows() -> Iterator[Row]:
        for source in sources:
            yield from passages_of(read_rows(source), left_out=left_out if drop_blank else None)

    grow_rows(corpus, rows(), made_of=made_of, report=report)
    return {"passages": check_corpus(corpus, report=report), "without_text": blank}


def check_corpus(corpus: Path, *, report: Report = silent) -> int:
    """Read every passage of a corpus: form and ids; how many. Raises DataError with the line at fault."""
    seen, count = array("Q"), 0
    for count, row in enumerate(passages_of(read_rows(corpus)), 1):
        seen.append(int.from_bytes(blake2b(row["id"].encode(), digest_size=8).digest(), "little"))
        if count % 10_000 == 0:
            report(f"checking {corpus.name}", count, 0)
    if not count:
        raise DataError(f"{corpus} holds no passage", remedy=SCHEMA)
    _refuse_duplicates(corpus, seen)
    return count


def _refuse_duplicates(corpus: Path, seen: array) -> None:
    import numpy

    hashes = numpy.frombuffer(seen, dtype=numpy.uint64)
    ordered = numpy.sort(hashes)
    twice = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if not twice:
        return
    # Equal hashes are looked at again, so that chance refuses nothing.
    first: dict[str, str] = {}
    for number, (place, row) in enumerate(read_rows(corpus)):
        if int(hashes[number]) in twice:
            name = _name(row, number)
            if name in first:
                raise DataError(
                    f"{place} has the id {name!r} of {first[name]}", remedy="give every passage an id of its own"
                )
            first[name] = place
