"""Dynamic batching: queries of many requests are searched together, because a batch costs little more than one query.

A lone query is searched at once; while a search runs, the next batch gathers. One thread searches, so a backend need
not be thread-safe, and the event loop stays free. Each query has a future of its own: a cancelled one leaves the queue
before it is searched. The queue is bounded; what does not fit is refused at once, with the time after which it may be
tried again. A batch is the oldest queries that fit the token budget, sorted by cost (encoders pad to the longest of
their sub-batch); taking them in order of arrival keeps a long query from waiting forever.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import structlog

from retrieval_server.errors import QueryError
from retrieval_server.metrics import Metrics

log = structlog.get_logger()

Hits = list[tuple[int, float]]
"""(row of the corpus, score), best first."""

# After a batch its clients come back within moments. Waiting for them, for at most this share of the time that the
# batch took, avoids that the first to return is searched by itself and the others wait for the next batch.
LINGER_SHARE = 0.05
LONGEST_RETRY_AFTER_S = 30


class Overloaded(Exception):
    """The queue has no room. `retry_after_s` is when it will have, by the latest searches' speed."""

    def __init__(self, *, retry_after_s: int) -> None:
        super().__init__(f"the queue is full, try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class SearchFailed(Exception):
    """The backend raised for this query."""


class BadQuery(SearchFailed):
    """The backend raised for this query, and the query is why."""


# What a query's text can make any backend raise, beside its own words for it.
_BY_THE_QUERY = (QueryError, UnicodeError, RecursionError)


@dataclass(slots=True, eq=False)
class _Query:
    text: str
    topk: int
    cost: int
    future: asyncio.Future[Hits]


class Batcher:
    """Searches queries in batches of at most `max_queries` queries and `max_cost` tokens. Lives in one event loop."""

    def __init__(
        self,
        search: Callable[[Sequence[str], int], Sequence[Hits]],
        cost: Callable[[str], int],
        *,
        max_cost: int,
        max_queries: int,
        max_queued: int,
        metrics: Metrics,
    ) -> None:
        self._search = search
        self._cost = cost
        self._max_cost = max_cost
        self._max_queries = max_queries
        self._max_queued = max_queued
        self._metrics = metrics
        self._queue: dict[_Query, None] = {}  # ordered, and a cancelled query leaves it in constant time
        self._searching: list[_Query] = []
        self._wanted = 1
        self._enough = asyncio.Event()
        self._seconds_per_query = 0.0
        self._last_queries = 0
        self._last_seconds = 0.0
        self._last_end = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="search")
        self._task = asyncio.create_task(self._run())

    def admit(self, count: int) -> None:
        """Raise Overloaded unless `count` more queries may queue; an empty queue admits any number."""
        if self._queue and len(self._queue) + count > self._max_queued:
            waiting = (len(self._queue) + len(self._searching)) * self._seconds_per_query
            raise Overloaded(retry_after_s=min(LONGEST_RETRY_AFTER_S, max(1, round(waiting))))

    def submit(self, text: str, *, topk: int) -> asyncio.Future[Hits]:
        """Queue an admitted query; the future gets its hits, or the error that its search raised."""
        query = _Query(text, topk, self._cost(text), asyncio.get_running_loop().create_future())
        query.future.add_done_callback(lambda _: self._settled(query))
        self._queue[query] = None
        if len(self._queue) >= self._wanted:
            self._enough.set()
        return query.future

    def _settled(self, query: _Query) -> None:
        self._queue.pop(query, None)
        if not query.future.cancelled():
            query.future.exception()  # seen, also when nobody waits for it any more

    def queued(self) -> int:
        """How many queries wait for a search."""
        return len(self._queue)

    async def close(self) -> None:
        """Stop; queries still queued are cancelled. The search that runs is not waited for."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        for query in [*self._queue, *self._searching]:
            query.future.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._gather()
            self._searching = self._next_batch()
            if not self._searching:
                continue
            begin = time.perf_counter()
            found = await loop.run_in_executor(self._thread, self._search_all, self._searching)
            self._last_end = time.perf_counter()
            self._last_seconds = self._last_end - begin
            self._last_queries = len(self._searching)
            self._seconds_per_query = self._last_seconds / self._last_queries
            self._metrics.searched(queries=self._last_queries, seconds=self._last_seconds)
            for query, hits in zip(self._searching, found, strict=True):
                if query.future.done():
                    continue  # its client went away during the search
                if isinstance(hits, SearchFailed):
                    query.future.set_exception(hits)
                else:
                    query.future.set_result(hits[: query.topk])
            self._searching = []

    async def _gather(self) -> None:
        """Wait for a query; just after a batch of several, for as many again, but only briefly."""
        await self._until_queued(1)
        rest = self._last_end + LINGER_SHARE * self._last_seconds - time.perf_counter()
        if self._last_queries > 1 and rest > 0:
            try:
                async with asyncio.timeout(rest):
                    await self._until_queued(self._last_queries)
            except TimeoutError:
                pass

    async def _until_queued(self, wanted: int) -> None:
        self._wanted = wanted
        while len(self._queue) < wanted:
            self._enough.clear()
            await self._enough.wait()

    def _next_batch(self) -> list[_Query]:
        batch: list[_Query] = []
        budget = self._max_cost
        for query in self._queue:
            budget -= query.cost
            if batch and (budget < 0 or len(batch) == self._max_queries):
                break
            batch.append(query)
        for query in batch:
            del self._queue[query]
        return sorted(batch, key=lambda query: query.cost, reverse=True)

    def _search_all(self, batch: Sequence[_Query]) -> list[Hits | SearchFailed]:
        """The batch's hits. One that fails is searched in halves: a bad query, or a lack of memory, spoils no other."""
        try:
            found = self._search([query.text for query in batch], max(query.topk for query in batch))
            if len(found) != len(batch):
                raise RuntimeError(f"the backend answered {len(found)} lists for {len(batch)} queries")
            return list(found)
        except BaseException as error:  # a panic in a Rust tokenizer is no Exception; nothing interrupts this thread
            if len(batch) == 1 and isinstance(error, _BY_THE_QUERY):
                log.warning("a query was refused", error=repr(error))
                return [BadQuery(str(error))]
            log.error("a search failed", queries=len(batch), error=repr(error))
            if len(batch) == 1:
                return [SearchFailed(repr(error))]
        half = len(batch) // 2
        return self._search_all(batch[:half]) + self._search_all(batch[half:])
