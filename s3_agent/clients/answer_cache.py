"""Replies of frozen models, kept by the content of the question and shared by all worker processes.

At temperature 0 the same messages get the same reply, and the siblings of a GRPO group often select the same passages:
asked once, the reply serves all. One process asks at a time (single-flight); a holder that died is waited for no longer
than its lease. A failure is never kept. A cache file that can not be used costs its advantage and nothing else.
"""

import asyncio
import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import structlog

from s3_agent.clients.chat_model import ChatModel, Message, ModelSettings

log = structlog.get_logger()

LEASE_S = 10.0
RENEW_S = 3.0
POLL_S = 0.05
LOCK_WAIT_S = 2

asked_model: ContextVar[bool] = ContextVar("asked_model", default=True)
"""Whether the last reply that this task waited for was the model's own, and not a kept or shared one."""


def content_address(settings: ModelSettings, messages: Sequence[Message]) -> str:
    """The key of one question: everything that a reply depends on, whichever server gives it."""
    asked = [settings.kind, settings.model, settings.max_tokens, settings.identity, list(messages)]
    return hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode(errors="surrogatepass")).hexdigest()


class CachedChat:
    """A chat model behind the cache in `folder`, which holds at most about `max_bytes`.

    `counts` tells how often the cache had the reply (`hits`), another one was already asking (`shared`), the model was
    asked (`calls`), and the cache could not be used (`bypassed`).
    """

    def __init__(self, model: ChatModel, settings: ModelSettings, folder: Path, *, max_bytes: int) -> None:
        from diskcache import Cache, JSONDisk, Timeout

        self._model = model
        self._settings = settings
        self._broken = (sqlite3.Error, OSError, ValueError, Timeout)
        self._open: Callable[[], Any] = lambda: Cache(
            str(folder), disk=JSONDisk, size_limit=max_bytes, timeout=LOCK_WAIT_S
        )
        self._cache: Any = None
        self._folder = folder
        self._flying: dict[str, asyncio.Task[tuple[str, bool]]] = {}
        self.counts: Counter[str] = Counter()

    async def reply(self, messages: Sequence[Message]) -> str:
        """The kept reply, or the model's. Raises what the model raises."""
        key = content_address(self._settings, messages)
        asking = self._flying.get(key)
        first = asking is None
        if asking is None:
            # A task of its own: a rollout that is cancelled must not take the reply from its siblings.
            asking = self._flying[key] = asyncio.create_task(self._find(key, messages))
            asking.add_done_callback(lambda done: self._landed(key, done))
        else:
            self.counts["shared"] += 1
        reply, asked = await asyncio.shield(asking)
        asked_model.set(first and asked)
        return reply

    def _landed(self, key: str, done: asyncio.Task[tuple[str, bool]]) -> None:
        del self._flying[key]
        if not done.cancelled():
            done.exception()  # seen, also when everyone who waited has gone

    async def _find(self, key: str, messages: Sequence[Message]) -> tuple[str, bool]:
        """The reply, and whether the model was asked for it."""
        waited = False
        while True:
            try:
                if self._cache is None:
                    self._cache = self._open()
                kept = self._cache.get(key)
                if kept is not None:
                    self.counts["shared" if waited else "hits"] += 1
                    return str(kept), False
                free = self._cache.add(f"lease {key}", 1, expire=LEASE_S)
            except self._broken as error:
                return await self._bypass(messages, error), True
            if free:
                return await self._ask(key, messages), True
            waited = True
            await asyncio.sleep(POLL_S)

    async def _ask(self, key: str, messages: Sequence[Message]) -> str:
        self.counts["calls"] += 1
        renewing = asyncio.create_task(self._renew(key))
        reply = None
        try:
            reply = await self._model.reply(messages)
            return reply
        finally:
            renewing.cancel()
            try:
                if reply is not None:
                    self._cache.set(key, reply)
                self._cache.delete(f"lease {key}")
            except self._broken as error:
                log.warning("a reply could not be kept", cache=str(self._folder), error=str(error))

    async def _renew(self, key: str) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            try:
                self._cache.touch(f"lease {key}", expire=LEASE_S)
            except self._broken:  # the lease ends early, and somebody asks a second time
                return

    async def _bypass(self, messages: Sequence[Message], error: Exception) -> str:
        if not self.counts["bypassed"]:
            log.warning("the answer cache can not be used", cache=str(self._folder), error=str(error))
        self.counts["bypassed"] += 1
        return await self._model.reply(messages)
