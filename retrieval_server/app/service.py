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

from retrieval_server.app import grep
from retrieval_server.app.refusals import Refused
from retrieval_server.app.turns import Turns
from retrieval_server.backends.base import Backend, Passages, StagedBackend, WaitingBackend, stages_of
from retrieval_server.batcher import BY_THE_QUERY, Away, BadQuery, Batcher, Hits, SearchFailed
from retrieval_server.config import ServerSettings, check_candidates
from retrieval_server.corpus import Report
from retrieval_server.errors import RetrievalError, SearchRefused, Unavailable
from retrieval_server.indexing import open_backend, open_corpus, open_without_corpus, used_settings
from retrieval_server.metrics import Metrics
from retrieval_server.passages import whole_text
from retrieval_server.query_cache import QueryCache
from retrieval_server.reranking.services import search_r1_text
from retrieval_server.reranking.stage import Reranked, reranked
from retrieval_server.schemas import (
    Document,
    FlatHit,
    GrepRequest,
    GrepResponse,
    Hit,
    Progress,
    RerankedText,
    RerankRequest,
    StagedHit,
    as_json,
)
from retrieval_server.tasks import Searcher, Tasks

log = structlog.get_logger()

# Reading passages waits for the disk, not for a core.
READERS = 4
RERANKING_S = 2.0  # expected of one request; from it a waiting client learns when to try again
Form = Literal["scored", "staged", "bare", "flat"]
"""The shape of an answer: lists of hits with scores, also with those of each stage, lists of documents, or the first
query's hits with their ids."""
_GREP, _RERANKED = TypeAdapter(GrepResponse), TypeAdapter(list[list[RerankedText] | list[str]])
_FORMS: dict[Form, TypeAdapter[Any]] = {
    "staged": TypeAdapter(list[list[StagedHit]]),
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
    """Opens the settings' corpus, index and reranker; with `build`, builds a missing or wrong index."""

    def open_all(report: Report) -> Opened:
        if settings.corpus is None:
            assert settings.backend is not None, "checked by the settings"
            return Opened(*open_without_corpus(settings.index, settings.backend, report=report))
        report("reading the corpus", 0, 0)
        corpus = open_corpus(settings.corpus, settings.index, report=report)
        backend, manifest = open_backend(corpus, settings.index, settings.backend, build=build, report=report)
        if settings.rerank is not None:
            check_candidates(used_settings(settings.index, settings.backend), settings.rerank)
            report("loading the reranker", 0, 0)
            backend, manifest = reranked(backend, settings.rerank, corpus, manifest)
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
        self._greps = Turns("grep", waiting=settings.max_waiting, expected_s=settings.grep_s)
        self._reranks = Turns("rerank", waiting=settings.max_waiting, expected_s=RERANKING_S)
        self._reranker: Reranked | None = None
        self.max_topk = settings.max_topk
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
        if isinstance(backend, StagedBackend):
            backend.observe_with(self._metrics.stage)
        self.max_topk = min(self.max_topk, getattr(backend, "most", None) or self.max_topk)
        if isinstance(backend, Reranked):
            self._reranker = backend
        self._batcher = self._searcher(backend)
        changing = getattr(backend, "answers_change", False)
        self._cache = QueryCache(
            self._batcher,
            max_bytes=0 if changing else int(settings.cache_mb * 1e6),
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
        passages, seconds = self._passages, self._settings.grep_s
        assert passages is not None, "not loaded"
        grep.compiled(asked)  # a pattern that can not be used is refused before it waits

        def work(stopped: Callable[[], bool]) -> bytes:
            return as_json(_GREP, grep.search(passages, asked, topk=topk, seconds=seconds, stopped=stopped))

        return await self._greps.run(work)

    async def rerank(self, asked: RerankRequest, *, topk: int) -> bytes:
        """The JSON answer of Search-R1's rerank server. Raises Refused, Overloaded, SearchRefused, and SearchFailed."""
        reranker = self._reranker
        if reranker is None:
            remedy = "start it with --rerank FILE, or in a run with retriever.rerank"
            raise Refused(404, "no_reranker", "this server has no reranker", remedy)

        def work(stopped: Callable[[], bool]) -> bytes:
            texts = [[search_r1_text(whole_text(contents)) for contents in own] for own in asked.contents]
            scores = reranker.scores(list(zip(asked.queries, texts, strict=True)), stopped=stopped)
            result: list[Any] = []
            for own, scored in zip(texts, scores, strict=True):
                best = sorted(zip(own, scored, strict=True), key=lambda one: -one[1])[:topk]
                hits = [RerankedText(document=text, score=score) for text, score in best]
                result.append(hits if asked.return_scores else [text for text, _ in best])
            return b'{"result":%b}' % as_json(_RERANKED, result)

        try:
            return await self._reranks.run(work)
        except Unavailable as cause:
            raise Away(cause) from cause
        except BY_THE_QUERY as cause:
            raise BadQuery(str(cause)) from cause
        except SearchRefused:
            raise
        except RetrievalError as cause:
            raise SearchFailed(str(cause).splitlines()[0]) from cause

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
        outcomes = await self._cache.answer(queries, topk=min(topk + more, self.max_topk))
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
            case "staged":
                result = [[self._staged(hit) for hit in hits] for hits in lists]
            case "bare":
                result = [[hit.document for hit in hits] for hits in lists]
            case "flat":
                documents = [hit.document for hit in lists[0]]
                result = [FlatHit.model_construct(document=document, docid=document.id) for document in documents]
        return b'{"result":%b}' % as_json(_FORMS[form], result)

    def _staged(self, hit: Hit) -> StagedHit:
        assert self.manifest is not None, "not loaded"
        stages = stages_of(hit.score, self.manifest["backend"])
        return StagedHit.model_construct(document=hit.document, score=hit.score, stages=stages)

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
        self._reranks.close()
        for threads in (self._readers, self._lookups):
            threads.shutdown(wait=False, cancel_futures=True)
