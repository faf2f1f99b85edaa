"""Asks a provider over HTTP: with its key, not too often, not beyond the budget, and again after a failure.

The key comes from the environment, and is taken out of every text that leaves this module.
"""

import asyncio
import json
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from retrieval_server import services
from retrieval_server.backends.web.settings import WebSettings
from retrieval_server.backends.web.store import Store
from retrieval_server.errors import RetrievalError, SearchRefused, Unavailable

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30.0
_AGAIN = frozenset({408, 425, 429})


class Key(services.Key):
    """A provider's key, which must be there."""

    def __init__(self, variable: str, environment: Mapping[str, str] = os.environ) -> None:
        super().__init__(variable, environment)
        if not self.value:
            raise RetrievalError(
                f"the key for web search is missing: {variable} is not set",
                remedy=f"export {variable}=…, or replay recorded answers (`mode: replay`), which needs no key",
            )


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
        self._next = 0.0

    async def turn(self) -> None:
        """Wait until the next request may begin."""
        while (wait := self._next - self._clock()) > 0:
            await self._sleep(wait)
        self._next = self._clock() + self._gap

    def pause(self, seconds: float) -> None:
        """Let no request begin for this time."""
        self._next = max(self._next, self._clock() + seconds)


class _Again(Exception):
    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


def retry_after_s(value: str | None) -> float | None:
    """The seconds that a `Retry-After` header asks for, as a number or a date; None if it asks for no wait."""
    try:
        seconds = float(value or "")
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value or "").timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return seconds if seconds > 0 else None


class Asking:
    """A provider that is asked. Belongs to one event loop."""

    def __init__(self, settings: WebSettings, store: Store, *, pace: Pace | None = None) -> None:
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

        Raises SearchRefused if asking again is useless, and Unavailable if the provider does not answer in time.
        """
        async with self._slots:
            ends, tries = time.monotonic() + self._settings.patience_s, 0
            while True:
                tries += 1
                try:
                    return await self._once(query)
                except _Again as failure:
                    wait = failure.retry_after
                    if wait is None:
                        wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(tries - 1, 30)) * random.uniform(0.5, 1.0)
                    else:
                        self._pace.pause(wait)
                    if time.monotonic() + wait > ends:
                        raise Unavailable(
                            f"{self._settings.provider} gave no answer within {self._settings.patience_s:.0f} s: "
                            f"{failure}",
                            remedy="search again later, or raise `patience_s`",
                        ) from None
                    await asyncio.sleep(wait)

    async def _once(self, query: str) -> tuple[str, dict[str, Any]]:
        settings, provider = self._settings, self._provider
        await self._pace.turn()
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
        if status != 200:
            refused = status in services.KEY_REFUSED
            remedy = f"check the key in {self._key.variable}" if refused else "see the message, the key"
            remedy += " and the `options` of the index's settings"
            raise self._refused(f"status {status}: {body[:300]}", remedy)
        try:
            decoded = json.loads(body)
        except ValueError:
            raise _Again(f"an answer that is not JSON: {body[:200]}") from None
        if not isinstance(decoded, dict):
            raise _Again(f"an answer in an unknown form: {body[:200]}")
        if problem := provider.problem(decoded):
            raise self._refused(problem[:300], f"see the message, and check the key in {self._key.variable}")
        return body, decoded

    def _refused(self, message: str, remedy: str) -> SearchRefused:
        return SearchRefused(
            403, "refused_by_provider", f"{self._settings.provider} refused a search: {message}", remedy
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()
