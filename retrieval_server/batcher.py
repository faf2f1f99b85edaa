"""Dynamic batching: searches the queries of many requests together, because a batch costs little more than one query.

A single query is searched immediately; while a search runs, the next batch collects. One thread searches, so a backend
need not be thread-safe, and the event loop stays free. Each query has its own future; a cancelled query leaves the
queue before it is searched. The queue is bounded; a query that does not fit is refused immediately, with the time after
which to try again. A batch consists of the oldest queries that fit the token budget, sorted by cost (encoders pad to
the longest of their sub-batch). Since queries are taken in order of arrival, a long query never waits forever.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import structlog

from retrieval_server.errors import QueryError, SearchRefused, Unavailable
from retrieval_server.metrics import Metrics

log = structlog.get_logger()

Hits = list[tuple[int, float]]
"""(row of the corpus, score), best first."""

# After a batch its clients send their next queries within moments. Waiting for them, at most this share of the batch's
# duration, avoids searching the first one by itself while the others wait for the next batch.
LINGER_SHARE = 0.05
LONGEST_RETRY_AFTER_S = 30


class Overloaded(Exception):
    """The queue is full. `retry_after_s` estimates, from the speed of the latest searches, when it has room."""

    def __init__(self, *, retry_after_s: int) -> None:
        super().__init__(f"the queue is full, try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class SearchFailed(Exception):
    """The backend raised for this query."""


class Away(SearchFailed):
    """A service behind the backend does not answer: all queries of the batch fail, and may succeed later."""

    def __init__(self, cause: Unavailable) -> None:
        super().__init__(str(cause).splitlines()[0])
        self.retry_after_s = cause.retry_after_s


class BadQuery(SearchFailed):
    """The backend raised for this query because of the query."""


# The exceptions by which any backend refuses a query's text.
BY_THE_QUERY = (QueryError, UnicodeError, RecursionError)


@dataclass(slots=True, eq=False)
class _Query:
    text: str
    topk: int
    cost: int
    future: asyncio.Future[Hits]


class Batcher:
    """Searches queries in batches of at most `max_queries` queries and `max_cost` tokens. Belongs to one event loop."""

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
        self._queue: dict[_Query, None] = {}  # ordered, and a cancelled query is removed in constant time
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
            query.future.exception()  # retrieve the exception even if nobody waits for it any more

    def queued(self) -> int:
        """The number of queries that wait for a search."""
        return len(self._queue)

    async def close(self) -> None:
        """Stop and cancel queued queries, without waiting for the running search."""
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
                    continue  # its client disconnected during the search
                if isinstance(hits, Exception):
                    query.future.set_exception(hits)
                else:
                    query.future.set_result(hits[: query.topk])
            self._searching = []

    async def _gather(self) -> None:
        """Wait for a query; directly after a batch of several, wait briefly for equally many."""
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

    def _search_all(self, batch: Sequence[_Query]) -> list[Hits | SearchFailed | SearchRefused]:
        """The batch's hits. If it fails, its halves are searched: a bad query or a lack of memory affects no other."""
        try:
            found = self._search([query.text for query in batch], max(query.topk for query in batch))
            if len(found) != len(batch):
                raise RuntimeError(f"the backend answered {len(found)} lists for {len(batch)} queries")
            return list(found)
        except Unavailable as error:
            log.error("the index is away", queries=len(batch), error=str(error))
            return [Away(error) for _ in batch]
        except BaseException as error:  # a Rust tokenizer's panic is not an Exception; nothing interrupts this thread
            if len(batch) == 1 and isinstance(error, BY_THE_QUERY):
                log.warning("a query was refused", error=repr(error))
                return [BadQuery(str(error))]
            if len(batch) == 1 and isinstance(error, SearchRefused):
                log.warning("a search was refused", code=error.code, error=str(error))
                return [error]
            log.error("a search failed", queries=len(batch), error=repr(error))
            if len(batch) == 1:
                return [SearchFailed(repr(error))]
        half = len(batch) // 2
        return self._search_all(batch[:half]) + self._search_all(batch[half:])
