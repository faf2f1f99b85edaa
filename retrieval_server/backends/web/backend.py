"""Answers queries from the kept answers, from a request that is under way, or from the provider."""

import asyncio
from typing import ClassVar

from retrieval_server.backends.base import Hits
from retrieval_server.backends.web.asking import Asking, Key
from retrieval_server.backends.web.latest import Latest
from retrieval_server.backends.web.providers.base import documents
from retrieval_server.backends.web.settings import WebSettings
from retrieval_server.backends.web.store import Store, key_of, request_of
from retrieval_server.errors import QueryError, SearchRefused


class Web:
    """Web search in one of its modes; the store resolves the rows of its hits. Belongs to one event loop."""

    ignores_whitespace: ClassVar[bool] = True

    def __init__(self, settings: WebSettings, store: Store | Latest) -> None:
        self._settings, self._store = settings, store
        self.answers_change = settings.mode == "live"
        self.most = settings.results
        self._asking: Asking | None = None
        self._asked: dict[str, asyncio.Task[list[int]]] = {}
        if not settings.replays:
            Key(settings.service.key_variable)  # a missing key is reported before the first search

    async def find(self, query: str, *, topk: int) -> Hits:
        """At most `topk` pages, best first, with 1/rank as score. Raises QueryError, SearchRefused and Unavailable."""
        settings = self._settings
        query = settings.service.fitting(query)
        if not query:
            return []
        request = request_of(settings.provider, settings.service.version, query, settings.results, settings.options)
        key = key_of(request)
        rows = await asyncio.to_thread(self._store.rows, key)
        if rows is None:
            rows = await self._unknown(key, request, query)
        return [(row, 1 / rank) for rank, row in enumerate(rows[:topk], 1)]

    async def _unknown(self, key: str, request: str, query: str) -> list[int]:
        if self._settings.mode == "replay_else_empty":
            return []
        if self._settings.replays:
            raise SearchRefused(
                404,
                "not_recorded",
                f"no recorded answer to the query {query!r}",
                "record it (`mode: record`), or let unknown queries find nothing (`mode: replay_else_empty`)",
            )
        # The request goes on if its client leaves: it is paid.
        task = self._asked.get(key)
        if task is None:
            task = self._asked[key] = asyncio.create_task(self._ask(key, request, query))
            task.add_done_callback(lambda task: self._ended(key, task))
        return await asyncio.shield(task)

    def _ended(self, key: str, task: asyncio.Task[list[int]]) -> None:
        del self._asked[key]
        if not task.cancelled():
            task.exception()  # retrieved also if every client has left

    async def _ask(self, key: str, request: str, query: str) -> list[int]:
        if self._asking is None:
            self._asking = Asking(self._settings, self._store)
        try:
            body, answer = await self._asking.ask(query)
        except QueryError as cause:
            return await asyncio.to_thread(self._store.keep, key, request, "", (), str(cause))
        pages = documents(self._settings.service.found(answer))
        return await asyncio.to_thread(self._store.keep, key, request, body, pages)

    async def close(self) -> None:
        """Stop. Requests under way are cancelled."""
        running = list(self._asked.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        if self._asking is not None:
            await self._asking.close()
        self._store.close()
