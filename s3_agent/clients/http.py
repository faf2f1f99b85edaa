"""The one way to call a JSON service: it retries while that can help, for a limited time, and then raises the
boundary's error.

After 429 and 503 it waits as long as `Retry-After` says; after 408, 425, other 5xx and transport failures it waits for
growing times with jitter. Any other 4xx is our own fault and fails at once. A call that must not be carried out twice
is repeated only after a failure that shows that it was not carried out.

Within an attempt at a rollout, the waits end with the attempt (`attempt_ends`): a new attempt would wait for the same
service and play everything again. When a gateway reports that it is paused, because weights are being exchanged, the
call waits for it in any case.
"""

import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from retrieval_server.retry_after import retry_after_s
from s3_agent.errors import BoundaryError

FIRST_WAIT_S = 0.25
LONGEST_WAIT_S = 8.0
PATIENCE_S = 120.0  # outside of an attempt, unless the caller gives another value
CONNECT_S = 10.0
LONGEST_PAUSE_S = 60.0
PAUSED = "x-agl-paused"
NOT_IMPLEMENTED = 501
_LAST_S = 2.0  # an attempt that ends during a wait would only report that its time ended, not what it waited for
_NOT_CARRIED_OUT = frozenset({408, 425, 429, 503})
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


_ends: ContextVar[float | None] = ContextVar("_ends", default=None)


@contextmanager
def attempt_ends(seconds: float) -> Iterator[None]:
    """Within the block, calls may wait until the attempt ends, in `seconds`."""
    token = _ends.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _ends.reset(token)


def _left_s() -> float | None:
    """Seconds until the attempt ends; None outside of one."""
    ends = _ends.get()
    return None if ends is None else max(0.1, ends - time.monotonic())


def _patience(patience_s: float | None) -> float:
    if patience_s is not None:
        return patience_s
    left = _left_s()
    return PATIENCE_S if left is None else left - min(_LAST_S, left / 10)


def passes(status: int) -> bool:
    """Whether a request that got this HTTP status can succeed later, unchanged."""
    return status in _NOT_CARRIED_OUT or (status >= 500 and status != NOT_IMPLEMENTED)


class Client(Protocol):
    """The part of httpx.AsyncClient that `call_json` uses; `s3_agent.clients.servers` has another one."""

    async def request(self, method: str, url: str, *, json: Any, headers: Any, timeout: Any) -> httpx.Response:
        """The answer. Raises httpx.RequestError."""
        ...


def bearer(key: str | None) -> dict[str, str]:
    """The header that sends `key`; empty without a key."""
    return {"Authorization": f"Bearer {key}"} if key else {}


class _Transient(Exception):
    def __init__(self, reason: str, *, retry_after: float | None = None, paused: bool = False) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        self.paused = paused


def retry_wait_s(tries: int, retry_after: float | None) -> float:
    """Seconds to wait after `tries` tries: what the service asks for, else a growing time with jitter.

    Even if the service asks for almost no wait, there is a short one.
    """
    jitter = random.uniform(0.5, 1.0)
    if retry_after is not None:
        return max(retry_after, FIRST_WAIT_S * jitter)
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(tries, 30)) * jitter


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return retry_wait_s(state.attempt_number, error.retry_after if isinstance(error, _Transient) else None)


async def _once(
    client: Client,
    method: str,
    url: str,
    body: Any,
    error: type[BoundaryError],
    headers: Mapping[str, str] | None,
    repeatable: bool,
) -> Any:
    def failed(reason: str, *, carried_out: bool, **said: Any) -> Exception:
        if repeatable or not carried_out:
            return _Transient(reason, **said)
        return error(
            f"{method} {url} failed and may have been carried out: {reason}",
            remedy=f"it is not repeated, since the {error.boundary} could do it twice: start again from the beginning",
        )

    left = _left_s()
    timeout = httpx.USE_CLIENT_DEFAULT if left is None else httpx.Timeout(left, connect=min(left, CONNECT_S))
    try:
        response = await client.request(method, url, json=body, headers=headers, timeout=timeout)
    except httpx.RequestError as cause:
        reason = f"{type(cause).__name__} {cause}".strip()
        raise failed(reason, carried_out=not isinstance(cause, _NOT_SENT)) from cause
    status = response.status_code
    if passes(status):
        raise failed(
            f"status {status}: {response.text[:300]}",
            carried_out=status not in _NOT_CARRIED_OUT,
            retry_after=retry_after_s(response.headers.get("retry-after")),
            paused=response.headers.get(PAUSED) == "true",
        )
    if response.is_error:
        raise error(
            f"{method} {url} was refused with status {status}: {response.text[:500]}",
            remedy=f"the {error.boundary} does not accept this request: check its version, model name and key",
            status=status,
        )
    try:
        return response.json()
    except ValueError as cause:
        raise error(f"{method} {url} did not answer with JSON: {response.text[:200]!r}") from cause


async def call_json(
    client: Client,
    method: str,
    url: str,
    *,
    error: type[BoundaryError],
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    patience_s: float | None = None,
    repeatable: bool = True,
) -> Any:
    """The decoded JSON answer of `url`. `patience_s` bounds the time spent on retries, in seconds. None: until the
    current attempt ends, or PATIENCE_S outside of an attempt. The time of a pause does not count.

    Raises `error` when the service refuses the request or is not reachable within the time. A call that is not
    `repeatable` also raises it when it may have been carried out although no answer came.
    """
    patience, since = _patience(patience_s), 0.0
    by_attempt = patience_s is None and _ends.get() is not None

    def left(state: RetryCallState) -> float:
        nonlocal since
        spent = state.seconds_since_start or 0.0
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, _Transient) and error.paused and not by_attempt:
            since = spent
            return LONGEST_PAUSE_S  # until it is asked again
        return patience - (spent - since)

    def wait(state: RetryCallState) -> float:
        # A service may ask for a longer wait than is left; the last try is made when the time ends.
        return min(_wait(state), max(0.0, left(state)))

    attempts = AsyncRetrying(
        retry=retry_if_exception_type(_Transient), wait=wait, stop=lambda state: left(state) <= 0, reraise=True
    )
    try:
        return await attempts(_once, client, method, url, body, error, headers, repeatable)
    except _Transient as cause:
        raise error(
            f"{method} {url} failed for {patience:.0f} s: {cause}",
            remedy=f"check that the {error.boundary} is running at that address, and its log",
        ) from cause
