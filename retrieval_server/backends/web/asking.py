"""Asks a provider over HTTP: with its key, not too often, not beyond the budget, and again after a failure.

Several providers answer a wrong key, missing credit or a wrong option with the status of a malformed query. So after
such a status a plain query is asked: only if the provider accepts that one, the query itself is at fault.

The key comes from the environment, and is taken out of every text that leaves this module.
"""

import asyncio
import json
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httpx

from retrieval_server import services
from retrieval_server.backends.web.latest import Latest
from retrieval_server.backends.web.settings import WebSettings
from retrieval_server.backends.web.store import Store
from retrieval_server.errors import QueryError, RetrievalError, SearchRefused, Unavailable
from retrieval_server.retry_after import retry_after_s

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30.0
PLAIN_QUERY = "weather"
_AGAIN = frozenset({408, 425, 429})
_PERHAPS_THE_QUERY = frozenset({400, 413, 414, 422})


class Key(services.Key):
    """A provider's key, which must be there."""

    def __init__(self, variable: str, environment: Mapping[str, str] = os.environ) -> None:
        super().__init__(variable, environment)
        if not self.value:
            raise RetrievalError(
                f"the key for web search is missing: {variable} is not set",
                remedy=f"export {variable}=…, or replay recorded answers (`mode: replay`), which needs no key",
            )


class Paused(Exception):
    """The provider asks for no request for another `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"it asks for no request for another {seconds:.0f} s")
        self.seconds = seconds


class Pace:
    """Lets a limited number of requests begin in a second, and none while the provider asks to wait."""

    def __init__(
        self,
        per_second: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._gap = 0.0 if per_second is None else 1.0 / per_second
        self._clock, self._sleep = clock, sleep
        self._next = self._pause_ends = 0.0

    async def turn(self, *, ends: float) -> None:
        """Wait until the next request may begin. Raises Paused if a pause lasts beyond `ends`, a time of the clock."""
        while (wait := max(self._next, self._pause_ends) - (now := self._clock())) > 0:
            if self._pause_ends > max(ends, now):
                raise Paused(self._pause_ends - now)
            await self._sleep(wait)
        self._next = self._clock() + self._gap

    def pause(self, seconds: float) -> None:
        """Let no request begin for this time."""
        self._pause_ends = max(self._pause_ends, self._clock() + seconds)


class _Again(Exception):
    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class _Rejected(Exception):
    """The provider answered that this request is malformed."""


class Asking:
    """A provider that is asked. Belongs to one event loop."""

    def __init__(self, settings: WebSettings, store: Store | Latest, *, pace: Pace | None = None) -> None:
        for name in ("httpx", "httpcore"):  # they log whole addresses, and some hold the key
            logging.getLogger(name).setLevel(logging.WARNING)
        self._settings, self._store = settings, store
        self._provider = settings.service
        self._key = Key(self._provider.key_variable)
        self._pace = pace or Pace(settings.per_second)
        self._slots = asyncio.Semaphore(settings.at_a_time)
        self._url = (settings.address or self._provider.address).rstrip("/")
        self._client = services.async_client(self._url, headers={}, timeout_s=settings.timeout_s)

    async def ask(self, query: str) -> tuple[str, dict[str, Any]]:
        """The answer's body, without the key, and the decoded answer.

        Raises QueryError if the provider rejects this query, SearchRefused if asking again is useless, and Unavailable
        if the provider does not answer in time.
        """
        async with self._slots:
            ends = time.monotonic() + self._settings.patience_s
            try:
                return await self._patiently(query, ends)
            except _Rejected as rejection:
                reason = str(rejection)
            try:
                await self._patiently(PLAIN_QUERY, ends)
            except _Rejected:
                raise self._refused(reason, self._check_the_key()) from None
            raise QueryError(f"{self._settings.provider} rejects this query: {reason}")

    async def _patiently(self, query: str, ends: float) -> tuple[str, dict[str, Any]]:
        tries = 0
        while True:
            tries += 1
            try:
                return await self._once(query, ends)
            except Paused as pause:
                raise self._no_answer(pause, pause.seconds) from None
            except _Again as failure:
                wait = failure.retry_after
                if wait is None:
                    wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(tries - 1, 30)) * random.uniform(0.5, 1.0)
                else:
                    self._pace.pause(wait)
                if time.monotonic() + wait > ends:
                    raise self._no_answer(failure, failure.retry_after) from None
                await asyncio.sleep(wait)

    def _no_answer(self, reason: Exception, retry_after: float | None) -> Unavailable:
        return Unavailable(
            f"{self._settings.provider} gave no answer within {self._settings.patience_s:.0f} s: {reason}",
            remedy="search again later, or raise `patience_s`",
            retry_after_s=retry_after,
        )

    async def _once(self, query: str, ends: float) -> tuple[str, dict[str, Any]]:
        settings, provider = self._settings, self._provider
        await self._pace.turn(ends=ends)
        if not await asyncio.to_thread(self._store.pay, settings.budget):
            raise SearchRefused(
                402,
                "budget_spent",
                f"the budget of {settings.budget} paid searches is spent",
                "raise `budget` in the index's settings, or replay what is recorded",
            )
        call = provider.call(query, settings.results, settings.options, self._key.value)
        try:
            answer = await self._client.request(
                call.method, self._url + call.path, params=call.params, headers=call.headers, json=call.body
            )
        except httpx.RequestError as cause:
            raise _Again(self._key.hide(f"{type(cause).__name__} {cause}".strip())) from None
        body = self._key.hide(answer.text)
        status = answer.status_code
        if status in _AGAIN or status >= 500:
            raise _Again(f"status {status}: {body[:200]}", retry_after_s(answer.headers.get("retry-after")))
        if status in _PERHAPS_THE_QUERY:
            raise _Rejected(f"status {status}: {body[:300]}")
        if status != 200:
            raise self._refused(f"status {status}: {body[:300]}", self._check_the_key())
        try:
            decoded = json.loads(body)
        except ValueError:
            raise _Again(f"an answer that is not JSON: {body[:200]}") from None
        if not isinstance(decoded, dict):
            raise _Again(f"an answer in an unknown form: {body[:200]}")
        if problem := provider.problem(decoded):
            raise self._refused(problem[:300], f"see the message, and check the key in {self._key.variable}")
        return body, decoded

    def _check_the_key(self) -> str:
        return f"see the message; check the key in {self._key.variable} and the `options` of the index's settings"

    def _refused(self, message: str, remedy: str) -> SearchRefused:
        return SearchRefused(
            403, "refused_by_provider", f"{self._settings.provider} refused a search: {message}", remedy
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()
