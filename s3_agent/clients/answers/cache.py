"""Replies of frozen models, stored by the content of the question and shared by all worker processes.

At temperature 0 the same messages get the same reply, and the siblings of a GRPO group often select the same passages:
the model is asked once, and all use the reply. One process asks at a time (single-flight). If it dies, the others wait
no longer than its lease. A failure is never stored. The file is used in a thread, so that a lock on it does not stop
other rollouts. A cache that fails a few times is not used again in the run: the run then only loses the time that the
cache would have saved.
"""

import asyncio
import hashlib
import json
import secrets
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path

import structlog

from s3_agent.clients.answers.store import ASIDE, AnswerStore
from s3_agent.clients.chat_model import ChatModel, Message, ModelSettings

log = structlog.get_logger()

LEASE_S = 10.0
RENEW_S = 3.0
POLL_S = 0.05
LOCK_WAIT_S = 2
MOST_FAILURES = 3

asked_model: ContextVar[bool] = ContextVar("asked_model", default=True)
"""Whether the last reply that this task waited for was the model's own, and not a kept or shared one."""


def content_address(settings: ModelSettings, messages: Sequence[Message]) -> str:
    """The key of one question: everything that a reply depends on, whichever server gives it."""
    asked = [settings.kind, settings.model, settings.max_tokens, settings.identity, list(messages)]
    if settings.added:
        asked.append(settings.added)
    return hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode(errors="surrogatepass")).hexdigest()


class _Unusable(Exception):
    """The store failed, or was given up."""


class CachedChat:
    """A chat model behind the cache in `folder`, which holds at most about `max_bytes`.

    `counts` holds how often the cache had the reply (`hits`), another call was already asking (`shared`), the model was
    asked (`calls`), and the cache could not be used (`bypassed`).
    """

    def __init__(self, model: ChatModel, settings: ModelSettings, folder: Path, *, max_bytes: int) -> None:
        self._model = model
        self._settings = settings
        self._folder = folder
        self._max_bytes = max_bytes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="answer-cache")
        self._store: AnswerStore | None = None  # made and used in the thread alone
        self._failures = 0
        self._holder = secrets.token_hex(8)
        self._flying: dict[str, asyncio.Task[tuple[str, bool]]] = {}
        self.counts: Counter[str] = Counter()

    async def reply(self, messages: Sequence[Message]) -> str:
        """The kept reply, or the model's. Raises what the model raises."""
        key = content_address(self._settings, messages)
        asking = self._flying.get(key)
        first = asking is None
        if asking is None:
            # A separate task: a cancelled rollout must not take the reply away from its siblings.
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
            done.exception()  # marks the exception as seen, also when nobody waits any more

    async def _stored[T](self, work: Callable[[AnswerStore], T]) -> T:
        """What `work` finds in the store. Raises _Unusable when the store fails, and at once after it was given up."""
        if self._failures >= MOST_FAILURES:
            raise _Unusable
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._in_thread, work)

    def _in_thread[T](self, work: Callable[[AnswerStore], T]) -> T:
        if self._failures >= MOST_FAILURES:  # given up while this call waited for the thread
            raise _Unusable
        try:
            if self._store is None:
                self._store = self._opened()
            written = self._store.written
            found = work(self._store)
        except (sqlite3.Error, OSError) as error:
            self._failed(error)
            raise _Unusable from error
        if self._store.written > written:  # reads succeed even if a lock is never released
            self._failures = 0
        return found

    def _opened(self) -> AnswerStore:
        store = AnswerStore(self._folder, max_bytes=self._max_bytes, wait_s=LOCK_WAIT_S)
        if store.left_aside:
            log.warning(
                "replies of an earlier version are left aside and asked for again: reading their store could run code",
                store=str(self._folder / ASIDE),
                remedy="delete it when no earlier version needs it",
            )
        return store

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        if self._failures < MOST_FAILURES:
            log.warning("the answer cache can not be used", cache=str(self._folder), error=str(error))
        else:
            log.error(
                f"the answer cache failed {MOST_FAILURES} times and is given up for this run: every question is asked",
                cache=str(self._folder),
                error=str(error),
                remedy="end what has its file open or locked, or name another folder (generator.cache, judge.cache)",
            )

    async def _find(self, key: str, messages: Sequence[Message]) -> tuple[str, bool]:
        """The reply, and whether the model was asked for it."""
        began = time.time()
        while True:
            try:
                kept, free = await self._stored(lambda store: store.kept(key)), False
                if kept is None:
                    kept, free = await self._stored(lambda store: store.claim(key, self._holder, seconds=LEASE_S))
            except _Unusable:
                self.counts["bypassed"] += 1
                return await self._model.reply(messages), True
            if kept is not None:
                self.counts["shared" if kept.at >= began else "hits"] += 1
                return kept.reply, False
            if free:
                return await self._ask(key, messages), True
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
            with suppress(_Unusable):  # already logged; whoever waits for the lease waits only until it ends
                await self._stored(lambda store: store.end(key, self._holder, reply))

    async def _renew(self, key: str) -> None:
        with suppress(_Unusable):  # the lease ends early, and another process asks a second time
            while True:
                await asyncio.sleep(RENEW_S)
                await self._stored(lambda store: store.renew(key, self._holder, seconds=LEASE_S))
