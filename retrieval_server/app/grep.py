"""Searches the passages for a regular expression: `POST /grep`.

The pattern comes from a model, so it is matched by RE2, whose time grows with the text, never exponentially. A search
reads passages in the order of the corpus until it has enough of them or its time is over, and says where to continue.
One thread searches, one request after the other, because a search keeps a core busy.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from pydantic import TypeAdapter

from retrieval_server.app.refusals import Refused
from retrieval_server.batcher import LONGEST_RETRY_AFTER_S, Overloaded
from retrieval_server.passages import whole_text
from retrieval_server.schemas import Document, GrepHit, GrepRequest, GrepResponse, as_json

_PATTERN_BYTES = 4 << 20  # of memory for a compiled pattern
_ANSWER = TypeAdapter(GrepResponse)


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


class Greps:
    """Runs searches one after the other, at most `waiting` of them queued. Belongs to one event loop."""

    def __init__(self, *, seconds: float, waiting: int) -> None:
        self._seconds, self._most = seconds, waiting
        self._open = 0
        self._closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grep")

    async def search(self, rows: Rows, asked: GrepRequest, *, topk: int) -> bytes:
        """The JSON answer. Raises Refused, and Overloaded if too many searches wait. If cancelled, it stops."""
        compiled(asked)  # a pattern that can not be used is refused before it waits
        if self._open > self._most:
            after = min(LONGEST_RETRY_AFTER_S, max(1, round(self._open * self._seconds)))
            raise Overloaded(retry_after_s=after)
        gone = threading.Event()

        def work() -> bytes:
            answer = search(
                rows, asked, topk=topk, seconds=self._seconds, stopped=lambda: gone.is_set() or self._closed
            )
            return as_json(_ANSWER, answer)

        self._open += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            self._open -= 1
            gone.set()

    def close(self) -> None:
        """Stop searching."""
        self._closed = True
        self._thread.shutdown(wait=False, cancel_futures=True)
