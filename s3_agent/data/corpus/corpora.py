"""Converts any form of corpus into the served one: JSON lines of id, title, text, contents.

`contents` is the quoted title, a newline and the text, whatever form the row had: the server reads the same forms by
the same rules (`retrieval_server.passages`). Everything streams, and a conversion that was killed continues after its
last whole line.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from retrieval_server.passages import SCHEMA, SeenIds, contents_of, read_id, read_passage
from s3_agent.data.corpus.splitting import Splitter
from s3_agent.data.files.tables import Placed, Row, read_rows, stem_of
from s3_agent.data.files.whole import Report, grow_rows, silent
from s3_agent.errors import DataError


def passages_of(
    rows: Iterable[Placed],
    *,
    numbered: str = "",
    splitter: Splitter | None = None,
    left_out: Callable[[str], None] | None = None,
) -> Iterator[Placed]:
    """Passages of rows, each with the place of its row. `splitter` cuts long ones; ids are kept.

    A row without an id gets its number, after the prefix `numbered`. `left_out` is called with the place of each row
    without text; without it such rows are kept, since an index counts them. Raises DataError with the place of an
    invalid row.
    """
    for number, (place, row) in enumerate(rows):
        try:
            passage, name = read_passage(row), read_id(row)
        except ValueError as cause:
            raise DataError(f"{place} is not a passage: {cause}", remedy=SCHEMA) from cause
        if left_out is not None and not passage.text.strip():
            left_out(place)
            continue
        name = f"{numbered}{number}" if name is None else name
        pieces = [passage.text] if splitter is None else splitter.pieces(passage.text)
        if len(pieces) == 1:
            yield (
                place,
                {"id": name, "title": passage.title, "text": passage.text, "contents": passage.contents},
            )
            continue
        for part, piece in enumerate(pieces, 1):
            contents = contents_of(passage.title, piece)
            # The document stands in a field, because an id may hold any character.
            fields = {"id": f"{name}#{part}", "title": passage.title, "text": piece, "contents": contents}
            yield place, {**fields, "document": name}


def passages_of_files(
    files: Sequence[Path],
    *,
    splitter: Splitter | None = None,
    left_out: Callable[[str], None] | None = None,
    read: Callable[[Row], Row] | None = None,
) -> Iterator[Placed]:
    """Passages of files of rows, in their order; if there are several files, rows are numbered within each file.

    `read` brings a row of another form into one that is known.
    """
    for path in files:
        numbered = f"{stem_of(path)}/" if len(files) > 1 else ""
        rows = read_rows(path) if read is None else ((place, read(row)) for place, row in read_rows(path))
        yield from passages_of(rows, numbered=numbered, splitter=splitter, left_out=left_out)


def convert_corpus(
    sources: Sequence[Path],
    corpus: Path,
    *,
    made_of: dict[str, Any],
    drop_blank: bool,
    read: Callable[[Row], Row] | None = None,
    report: Report = silent,
) -> dict[str, int]:
    """Write the corpus from files of rows, in their order; return how many passages, and how many rows had no text.

    `read` is that of `passages_of_files`. Raises DataError, also for an id that occurs twice.
    """
    blank = 0

    def left_out(_: str) -> None:
        nonlocal blank
        blank += 1

    placed = passages_of_files(sources, left_out=left_out if drop_blank else None, read=read)
    grow_rows(corpus, (row for _, row in placed), made_of=made_of, report=report)
    return {"passages": check_corpus(corpus, report=report), "without_text": blank}


def check_corpus(corpus: Path, *, report: Report = silent) -> int:
    """Read every passage of a corpus, check form and ids, and count them. Raises DataError with the wrong line."""
    return sum(1 for _ in checked(lambda: passages_of(read_rows(corpus)), corpus, report=report))


def checked(passages: Callable[[], Iterator[Placed]], source: Path, *, report: Report = silent) -> Iterator[Row]:
    """The passages of `source` that `passages` yields on each call, checked.

    Raises DataError with the places of an id that occurs twice, and if there is no passage.
    """
    seen, count = SeenIds(), 0
    for count, (_, row) in enumerate(passages(), 1):
        seen.add(row["id"])
        if count % 10_000 == 0:
            report(f"checking {source.name}", count, 0)
        yield row
    if not count:
        raise DataError(f"{source} holds no passage", remedy=SCHEMA)
    if found := seen.twice(lambda: ((place, row["id"]) for place, row in passages())):
        name, second, first = found
        raise DataError(f"{second} has the id {name!r} of {first}", remedy="give every passage a different id")
