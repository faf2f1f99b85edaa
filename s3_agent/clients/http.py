"""One way to call a JSON service: retried while that can help, bounded in time, then an error named by boundary.

429 and 503 are waited out as their `Retry-After` says (the gateway pauses while weights are exchanged), 5xx and
transport failures with growing jittered waits; any other 4xx is our own fault and fails at once.
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


def bearer(key: str | None) -> dict[str, str]:
    """The header that sends `key`; nothing without one."""
    return {"Authorization": f"Bearer {key}"} if key else {}


class _Transient(Exception):
    def __init__(self, reason: str, *, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds, from either form that HTTP allows: a number or a date."""
    value = response.headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, _Transient) and error.retry_after is not None:
        return error.retry_after
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**state.attempt_number) * random.uniform(0.5, 1.0)


async def _once(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    body: Any,
    error: type[BoundaryError],
    headers: Mapping[str, str] | None,
) -> Any:
    try:
        response = await client.request(method, url, json=body, headers=headers)
    except httpx.RequestError as cause:
        raise _Transient(f"{type(cause).__name__} {cause}".strip()) from cause
    if response.status_code == 429 or response.status_code >= 500:
        raise _Transient(
            f"status {response.status_code}: {response.text[:300]}",
            retry_after=_retry_after(response),
        )
    if response.is_error:
        raise error(
            f"{method} {url} was refused with status {response.status_code}: {response.text[:500]}",
            remedy=f"the {error.boundary} does not accept this request: check its version, model name and key",
            status=response.status_code,
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
) -> Any:
    """The decoded JSON answer of `url`. `patience_s` bounds the time spent on retries, in seconds.

    Raises `error` when the service refuses the request or is not reachable within the time.
    """

    def wait(state: RetryCallState) -> float:
        # A service may ask for more than we have; the last try is made when the patience ends.
        return min(_wait(state), max(0.0, patience_s - (state.seconds_since_start or 0.0)))

    attempts = AsyncRetrying(
        retry=retry_if_exception_type(_Transient), wait=wait, stop=stop_after_delay(patience_s), reraise=True
    )
    try:
        return await attempts(_once, client, method, url, body, error, headers)
    except _Transient as cause:
        raise error(
            f"{method} {url} failed for {patience_s:.0f} s: {cause}",
            remedy=f"check that the {error.boundary} is running at that address, and its log",
        ) from cause
