"""The search behind the routes: loads the index in a thread, then answers through cache and batcher.

The routes of `app` call it. Separate threads serialise found passages, because reading a cold page of the corpus waits
for the disk.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, cast

import structlog
from pydantic import TypeAdapter

from retrieval_server.app.grep import Greps
from retrieval_server.backends.base import Backend, Passages, WaitingBackend
from retrieval_server.batcher import BadQuery, Batcher, Hits
from retrieval_server.config import ServerSettings
from retrieval_server.corpus import Report
from retrieval_server.indexing import open_backend, open_corpus, open_without_corpus
from retrieval_server.metrics import Metrics
from retrieval_server.query_cache import QueryCache
from retrieval_server.schemas import Document, FlatHit, GrepRequest, Hit, Progress, as_json
from retrieval_server.tasks import Searcher, Tasks

log = structlog.get_logger()

# Reading passages waits for the disk, not for a core.
READERS = 4
Form = Literal["scored", "bare", "flat"]
"""The shape of an answer: lists of hits with scores, lists of documents, or the first query's hits with their ids."""
_FORMS: dict[Form, TypeAdapter[Any]] = {
    "scored": TypeAdapter(list[list[Hit]]),
    "bare": TypeAdapter(list[list[Document]]),
    "flat": TypeAdapter(list[FlatHit]),
}


class Stopped(Exception):
    """The server stops while it loads."""


@dataclass(frozen=True)
class Opened:
    """The opened corpus and index from which a server answers."""

    passages: Passages
    backend: Backend | WaitingBackend
    manifest: dict[str, Any]


Opener = Callable[[Report], Opened]
"""Called once, in a separate thread. The report raises Stopped if the server stops: do not catch it."""


def opener(settings: ServerSettings, *, build: bool) -> Opener:
    """Opens the settings' corpus and index; with `build`, builds an index that is missing or does not match."""

    def open_all(report: Report) -> Opened:
        if settings.corpus is None:
            assert settings.backend is not None, "checked by the settings"
            return Opened(*open_without_corpus(settings.index, settings.backend, report=report))
        report("reading the corpus", 0, 0)
        corpus = open_corpus(settings.corpus, settings.index, report=report)
        backend, manifest = open_backend(corpus, settings.index, settings.backend, build=build, report=report)
        return Opened(corpus, backend, manifest)

    return open_all


class Service:
    """One corpus with its index. Not ready until `load` has ended."""

    def __init__(self, settings: ServerSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self.manifest: dict[str, Any] | None = None
        self.failure: str | None = None
        self.progress = Progress()
        self._stopping = False
        self._passages: Passages | None = None
        self._batcher: Searcher | None = None
        self._cache: QueryCache | None = None
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="read")
        self._lookups = ThreadPoolExecutor(1, thread_name_prefix="look up")  # the first may read the whole corpus
        self._greps = Greps(seconds=settings.grep_s, waiting=settings.max_queued_greps)
        metrics.watch("retrieval_ready", "1 when the index is loaded", lambda: self.manifest is not None)
        metrics.watch(
            "retrieval_queued_queries", "Queries that wait", lambda: self._batcher.queued() if self._batcher else 0
        )
        metrics.watch("retrieval_cache_entries", "Queries in the cache", lambda: len(self._cache) if self._cache else 0)

    async def load(self, opener: Opener) -> None:
        """Open the corpus and its index. Raises what `opener` raises; `failure` then holds its message."""
        loop = asyncio.get_running_loop()
        loaded: asyncio.Future[Opened] = loop.create_future()

        def settle(action: Callable[[Any], None], value: Any) -> None:
            if not loaded.done():
                action(value)

        def work() -> None:
            try:
                outcome, action = opener(self._report), loaded.set_result
            except BaseException as error:  # the waiting server must get any exception
                outcome, action = error, loaded.set_exception
            if not self._stopping:
                loop.call_soon_threadsafe(settle, action, outcome)

        # A daemon thread, so that a server stopped while loading does not wait for the load.
        threading.Thread(target=work, name="load", daemon=True).start()
        try:
            opened = await loaded
        except Exception as error:
            self.failure = str(error)
            raise
        settings, backend = self._settings, opened.backend
        self._passages = opened.passages
        self._batcher = self._searcher(backend)
        self._cache = QueryCache(
            self._batcher,
            max_bytes=int(settings.cache_mb * 1e6),
            ignores_whitespace=backend.ignores_whitespace,
            metrics=self._metrics,
        )
        self.manifest = opened.manifest

    def _searcher(self, backend: Backend | WaitingBackend) -> Searcher:
        settings = self._settings
        if hasattr(backend, "find"):
            return Tasks(cast(WaitingBackend, backend), max_queued=settings.max_queued, metrics=self._metrics)
        batches = cast(Backend, backend)
        return Batcher(
            lambda queries, topk: batches.search(queries, topk=topk),
            batches.cost,
            max_cost=settings.max_batch_tokens,
            max_queries=settings.max_batch_queries,
            max_queued=settings.max_queued,
            metrics=self._metrics,
        )

    def _report(self, stage: str, done: int, total: int) -> None:
        if self._stopping:
            raise Stopped
        self.progress = Progress(stage=stage, done=done, total=total)

    async def document(self, name: str) -> Document | None:
        """The passage with that id; None if there is none."""
        passages = self._passages
        assert passages is not None, "not loaded"

        def find() -> Document | None:
            row = passages.row_of(name)
            return None if row is None else passages[row]

        return await asyncio.get_running_loop().run_in_executor(self._lookups, find)

    async def grep(self, asked: GrepRequest, *, topk: int) -> bytes:
        """The JSON answer. Raises Refused, and Overloaded if too many searches wait. If cancelled, it stops."""
        assert self._passages is not None, "not loaded"
        return await self._greps.search(self._passages, asked, topk=topk)

    async def retrieve(
        self, queries: Sequence[str], *, topk: int, form: Form, excluded: Sequence[frozenset[str]]
    ) -> tuple[bytes, int]:
        """The JSON answer to a request, and the number of queries whose list is empty because they can not be searched.

        `excluded`: for each query the ids that its list leaves out; at most `max_topk` hits are read for a list.
        Raises Overloaded, SearchFailed, and BadQuery if no query can be searched. If cancelled, it cancels its
        searches.
        """
        assert self._cache is not None, "not loaded"
        more = max(map(len, excluded), default=0)
        outcomes = await self._cache.answer(queries, topk=min(topk + more, self._settings.max_topk))
        bad = [outcome for outcome in outcomes if isinstance(outcome, BadQuery)]
        self._metrics.refused(len(bad))
        if bad and len(bad) == len(outcomes):
            raise bad[0]
        found = [[] if isinstance(outcome, BadQuery) else outcome for outcome in outcomes]
        answer = await asyncio.get_running_loop().run_in_executor(
            self._readers, self._written, found, form, topk, excluded
        )
        return answer, len(bad)

    def _written(self, found: Sequence[Hits], form: Form, topk: int, excluded: Sequence[frozenset[str]]) -> bytes:
        lists = [list(islice(self._hits(hits, names), topk)) for hits, names in zip(found, excluded, strict=True)]
        result: list[Any]
        match form:
            case "scored":
                result = lists
            case "bare":
                result = [[hit.document for hit in hits] for hits in lists]
            case "flat":
                documents = [hit.document for hit in lists[0]]
                result = [FlatHit.model_construct(document=document, docid=document.id) for document in documents]
        return b'{"result":%b}' % as_json(_FORMS[form], result)

    def _hits(self, hits: Hits, excluded: frozenset[str]) -> Iterator[Hit]:
        assert self._passages is not None, "not loaded"
        for row, score in hits:
            document = self._passages[row]
            if document.id not in excluded:
                yield Hit.model_construct(document=document, score=score)

    async def close(self) -> None:
        """Stop loading or searching."""
        self._stopping = True
        if self._batcher is not None:
            await self._batcher.close()
        self._greps.close()
        for threads in (self._readers, self._lookups):
            threads.shutdown(wait=False, cancel_futures=True)
