"""An LRU cache of hits that also shares running searches: the rollouts of a GRPO group repeat each other's queries.

Keys are normalised queries. If the backend declares that whitespace does not change its results, runs of ASCII
whitespace become one space and the ends are trimmed; otherwise the exact query is the key. A result for a larger top-k
also serves a smaller one. Size 0 switches off both the cache and the sharing of searches.
"""

import asyncio
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from cachetools import LRUCache

from retrieval_server.backends.base import StageScore
from retrieval_server.batcher import BadQuery, Hits
from retrieval_server.metrics import Metrics
from retrieval_server.tasks import Searcher

# Bytes of an entry in addition to its characters, measured on CPython 3.12 (tuple 56 + float 24 + int 32 per hit).
BYTES_PER_ENTRY = 400
BYTES_PER_HIT = 120
BYTES_PER_STAGED_HIT = 520
_WHITESPACE = re.compile(r"[ \t\r\n]+")


def normalise(query: str) -> str:
    """The query with ASCII whitespace collapsed and trimmed. Not str.split(): tokenizers delete other separators."""
    return _WHITESPACE.sub(" ", query).strip(" ")


@dataclass(slots=True)
class _Entry:
    topk: int
    hits: Hits
    size: int


@dataclass(slots=True, eq=False)
class _Search:
    topk: int
    future: asyncio.Future[Hits]
    waiters: int = 0


def _outcome(future: asyncio.Future[Hits], topk: int) -> Hits | BadQuery:
    error = future.exception()
    return error if isinstance(error, BadQuery) else future.result()[:topk]


class QueryCache:
    """Answers queries from the cache, from a running search, or from a new one. Belongs to one event loop."""

    def __init__(self, batcher: Searcher, *, max_bytes: int, ignores_whitespace: bool, metrics: Metrics) -> None:
        self._batcher = batcher
        self._off = max_bytes == 0
        self._entries: LRUCache[Hashable, _Entry] = LRUCache(max_bytes, getsizeof=lambda entry: entry.size)
        self._searches: dict[Hashable, _Search] = {}
        self._ignores_whitespace = ignores_whitespace
        self._metrics = metrics

    async def answer(self, queries: Sequence[str], *, topk: int) -> list[Hits | BadQuery]:
        """The hits of each query, or its error. Raises Overloaded before any query is queued, or SearchFailed.

        If cancelled, it cancels the searches that no other request waits for.
        """
        found: dict[Hashable, Hits | BadQuery] = {}
        shared: dict[Hashable, _Search] = {}
        new: dict[Hashable, str] = {}
        keys = [self._key(query) for query in queries]
        for key, query in zip(keys, queries, strict=True):
            entry, search = self._entries.get(key), self._searches.get(key)
            if search is not None and search.future.cancelled():
                search = None  # cancelled a moment ago
            if entry is not None and entry.topk >= topk:
                found[key] = entry.hits[:topk]
                self._metrics.cache("hit")
            elif key in new or (search is not None and search.topk >= topk):
                if search is not None and key not in new:
                    shared[key] = search
                self._metrics.cache("wait")
            else:
                new[key] = query
        if new:
            self._batcher.admit(len(new))
        for key, query in new.items():
            self._metrics.cache("miss")
            shared[key] = self._begin(key, query, topk)
        if shared:
            await self._finish(list(shared.values()))
            found |= {key: _outcome(search.future, topk) for key, search in shared.items()}
        return [found[key] for key in keys]

    def __len__(self) -> int:
        return len(self._entries)

    def _key(self, query: str) -> Hashable:
        if self._off:
            return object()
        return normalise(query) if self._ignores_whitespace else query

    def _begin(self, key: Hashable, query: str, topk: int) -> _Search:
        search = _Search(topk, self._batcher.submit(query, topk=topk))
        if not self._off:
            self._searches[key] = search
            search.future.add_done_callback(lambda future: self._end(key, search, future))
        return search

    def _end(self, key: Hashable, search: _Search, future: asyncio.Future[Hits]) -> None:
        if self._searches.get(key) is search:
            del self._searches[key]
        if future.cancelled() or future.exception() is not None:
            return
        hits = future.result()
        staged = bool(hits) and isinstance(hits[0][1], StageScore)
        per_hit = BYTES_PER_STAGED_HIT if staged else BYTES_PER_HIT
        size = BYTES_PER_ENTRY + 4 * len(str(key)) + per_hit * search.topk
        known = self._entries.get(key)
        if size <= self._entries.maxsize and (known is None or known.topk < search.topk):
            self._entries[key] = _Entry(search.topk, hits, size)

    async def _finish(self, searches: Sequence[_Search]) -> None:
        for search in searches:
            search.waiters += 1
        try:
            await asyncio.wait([search.future for search in searches])
        finally:
            for search in searches:
                search.waiters -= 1
                if not search.waiters:
                    search.future.cancel()  # has no effect on one that is done
