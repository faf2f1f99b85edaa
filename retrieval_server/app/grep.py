"""Searches the passages for a regular expression: `POST /grep`.

The pattern comes from a model, so it is matched by RE2, whose time grows with the text, never exponentially. A search
reads passages in the order of the corpus until it has enough of them or its time is over, and says where to continue.
Requests are searched one after the other (`turns.py`), because a search keeps a core busy.
"""

import time
from collections.abc import Callable
from typing import Any, Protocol

from retrieval_server.app.refusals import Refused
from retrieval_server.passages import whole_text
from retrieval_server.schemas import Document, GrepHit, GrepRequest, GrepResponse

_PATTERN_BYTES = 4 << 20  # of memory for a compiled pattern


class Rows(Protocol):
    """Passages by row."""

    def __len__(self) -> int: ...
    def __getitem__(self, row: int, /) -> Document: ...


def compiled(asked: GrepRequest) -> Callable[[str], Any]:
    """Finds the first match in a text. Raises Refused for a pattern that RE2 does not accept."""
    import re2

    options = re2.Options()
    options.log_errors, options.case_sensitive, options.max_mem = False, not asked.ignore_case, _PATTERN_BYTES
    try:
        return re2.compile(asked.pattern, options).search
    except re2.error as cause:
        why = cause.args[0]
        text = why.decode("utf-8", "replace") if isinstance(why, bytes) else str(why)
        raise Refused(
            422,
            "bad_pattern",
            f"the pattern is not a regular expression: {text}",
            "use RE2's syntax (https://github.com/google/re2/wiki/Syntax): without look-around and back-references",
        ) from cause


def search(
    rows: Rows, asked: GrepRequest, *, topk: int, seconds: float, stopped: Callable[[], bool] = lambda: False
) -> GrepResponse:
    """The first `topk` passages that match, within `seconds`. Raises Refused for a pattern that can not be used."""
    find, excluded, until = compiled(asked), frozenset(asked.exclude), time.monotonic() + seconds
    found: list[GrepHit] = []
    row, last = asked.start, len(rows)
    while row < last and len(found) < topk:
        if row > asked.start and (time.monotonic() > until or stopped()):
            break
        document = rows[row]
        row += 1
        match = find(whole_text(document.contents))
        if match is not None and document.id not in excluded:
            found.append(GrepHit.model_construct(document=document, start=match.start(), end=match.end()))
    return GrepResponse.model_construct(result=found, read=max(0, row - asked.start), next=row if row < last else None)
