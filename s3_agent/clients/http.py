"""One way to call a JSON service: retried while that can help, bounded in time, then an error named by boundary.

429 and 503 are waited out as their `Retry-After` says (the gateway pauses while weights are exchanged), 408, 425, 5xx
and transport failures with growing jittered waits; any other 4xx is our own fault and fails at once. A call that must
not be carried out twice is repeated only after a failure that shows that it was not carried out.
"""

import random
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_delay

from s3_agent.errors import BoundaryError

FIRST_WAIT_S = 0.25
LONGEST_WAIT_S = 8.0
_NOT_CARRIED_OUT = frozenset({408, 425, 429, 503})
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


def passes(status: int) -> bool:
    """Whether a request that got this HTTP status can succeed later, unchanged."""
    return status in _NOT_CARRIED_OUT or status >= 500


def bearer(key: str | None) -> dict[str, str]:
    """The header that sends `key`; nothing without one."""
    return {"Authorization": f"Bearer {key}"} if key else {}


class _Transient(Exception):
    def __init__(self, reason: str, *, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


def retry_after_s(value: str | None) -> float | None:
    """The seconds that a `Retry-After` header asks for, as a number or a date; None where it asks for no wait."""
    try:
        seconds = float(value or "")
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value or "").timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return seconds if seconds > 0 else None


def retry_wait_s(tries: int, retry_after: float | None) -> float:
    """Seconds to wait after `tries` tries: what the service asks for, else growing and jittered.

    A service that asks for next to nothing is not asked without pause.
    """
    jitter = random.uniform(0.5, 1.0)
    if retry_after is not None:
        return max(retry_after, FIRST_WAIT_S * jitter)
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(tries, 30)) * jitter


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return retry_wait_s(state.attempt_number, error.retry_after if isinstance(error, _Transient) else None)


async def _once(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    body: Any,
    error: type[BoundaryError],
    headers: Mapping[str, str] | None,
    repeatable: bool,
) -> Any:
    def failed(reason: str, *, carried_out: bool, retry_after: float | None = None) -> Exception:
        if repeatable or not carried_out:
            return _Transient(reason, retry_after=retry_after)
        return error(
            f"{method} {url} failed and may have been carried out: {reason}",
            remedy=f"it is not repeated, since the {error.boundary} would do it twice: start again from the beginning",
        )

    try:
        response = await client.request(method, url, json=body, headers=headers)
    except httpx.RequestError as cause:
        reason = f"{type(cause).__name__} {cause}".strip()
        raise failed(reason, carried_out=not isinstance(cause, _NOT_SENT)) from cause
    status = response.status_code
    if passes(status):
        raise failed(
            f"status {status}: {response.text[:300]}",
            carried_out=status not in _NOT_CARRIED_OUT,
            retry_after=retry_after_s(response.headers.get("retry-after")),
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
    client: httpx.AsyncClient,
    method: str,
    url: str,
    *,
    error: type[BoundaryError],
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    patience_s: float = 120.0,
    repeatable: bool = True,
) -> Any:
    """The decoded JSON answer of `url`. `patience_s` bounds the time spent on retries, in seconds.

    Raises `error` when the service refuses the request or is not reachable within the time. A call that is not
    `repeatable` also raises it when it may have been carried out although no answer came.
    """

    def wait(state: RetryCallState) -> float:
        # A service may ask for more than we have; the last try is made when the patience ends.
        return min(_wait(state), max(0.0, patience_s - (state.seconds_since_start or 0.0)))

    attempts = AsyncRetrying(
        retry=retry_if_exception_type(_Transient), wait=wait, stop=stop_after_delay(patience_s), reraise=True
    )
    try:
        return await attempts(_once, client, method, url, body, error, headers, repeatable)
    except _Transient as cause:
        raise error(
            f"{method} {url} failed for {patience_s:.0f} s: {cause}",
            remedy=f"check that the {error.boundary} is running at that address, and its log",
        ) from cause
