"""Searches each query in a task of its own: for backends that wait for another service instead of computing.

It stands in the place of the batcher, with the same queue limits. Belongs to one event loop.
"""

import asyncio
import time
from typing import Protocol

import structlog

from retrieval_server.backends.base import Hits, WaitingBackend
from retrieval_server.batcher import BY_THE_QUERY, Away, BadQuery, Overloaded, SearchFailed
from retrieval_server.errors import SearchRefused, Unavailable
from retrieval_server.metrics import Metrics

log = structlog.get_logger()

RETRY_AFTER_S = 5


class Searcher(Protocol):
    """What the query cache asks for hits: a `Batcher`, or the `Tasks` of this module."""

    def admit(self, count: int) -> None:
        """Raise Overloaded unless `count` more queries may queue."""
        ...

    def submit(self, text: str, *, topk: int) -> asyncio.Future[Hits]:
        """The future hits of an admitted query."""
        ...

    def queued(self) -> int:
        """The number of queries that wait."""
        ...

    async def close(self) -> None:
        """Stop, and cancel what waits."""
        ...


class Tasks:
    """One task for each query, at most `max_queued` at a time."""

    def __init__(self, backend: WaitingBackend, *, max_queued: int, metrics: Metrics) -> None:
        self._backend, self._max_queued, self._metrics = backend, max_queued, metrics
        self._running: set[asyncio.Task[Hits]] = set()

    def admit(self, count: int) -> None:
        """Raise Overloaded unless `count` more queries may begin; an idle server admits any number."""
        if self._running and len(self._running) + count > self._max_queued:
            raise Overloaded(retry_after_s=RETRY_AFTER_S)

    def submit(self, text: str, *, topk: int) -> asyncio.Future[Hits]:
        """Begin to search an admitted query; the future gets its hits, or the error that its search raised."""
        task = asyncio.create_task(self._search(text, topk))
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Hits]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved also if nobody waits for it any more

    async def _search(self, text: str, topk: int) -> Hits:
        begin = time.perf_counter()
        try:
            return await self._backend.find(text, topk=topk)
        except SearchRefused as refused:
            log.warning("a search was refused", code=refused.code, error=str(refused))
            raise
        except BY_THE_QUERY as error:
            log.warning("a query was refused", error=repr(error))
            raise BadQuery(str(error)) from error
        except Unavailable as error:
            log.error("the index is away", error=str(error))
            raise Away(error) from error
        except Exception as error:
            log.error("a search failed", error=repr(error))
            raise SearchFailed(repr(error)) from error
        finally:
            self._metrics.searched(queries=1, seconds=time.perf_counter() - begin)

    def queued(self) -> int:
        """The number of queries whose search has started and not ended."""
        return len(self._running)

    async def close(self) -> None:
        """Cancel every search, and close the backend."""
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._backend.close()
