"""Calls a model's service over HTTP: its key, its errors, and repeated calls while it is away.

Rerankers and encoders that run elsewhere use it, in the thread that searches.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import httpx
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from retrieval_server.errors import RetrievalError, Unavailable

_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_SHOWN = 300
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 2.0


def checked_url(url: str) -> str:
    """The address without a slash at its end. Raises ValueError if it is none of HTTP, or has a user or a password."""
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL as cause:
        raise ValueError(f"`url` is no address: {cause}") from cause
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ValueError("`url` is not http://HOST:PORT/… or https://HOST/…")
    if parts.userinfo:
        raise ValueError("`url` has a user or a password: leave it out, and name the key's variable in `key_variable`")
    return url.rstrip("/")


class ModelService:
    """A service at `url`. Its key, if it has one, is read from the environment variable `key_variable`.

    Several threads may call it.
    """

    def __init__(self, what: str, url: str, *, key_variable: str | None, timeout_s: float, patience_s: float) -> None:
        """`what` names it in errors, for example `the reranker`."""
        self._what = f"{what} at {url}"
        self._url = url
        self._key_variable = key_variable
        self._patience_s = patience_s
        headers: dict[str, str] = {}
        if key_variable is not None:
            key = os.environ.get(key_variable, "").strip()
            if not key:
                raise RetrievalError(
                    f"the key of {self._what} is missing: {key_variable} is not set", remedy=f"export {key_variable}=…"
                )
            headers["authorization"] = f"Bearer {key}"
        local = httpx.URL(url).host in ("127.0.0.1", "localhost", "::1")
        self._client = httpx.Client(timeout=timeout_s, headers=headers, trust_env=not local)

    def post(self, body: Mapping[str, Any]) -> Any:
        """The answer's JSON. Raises Unavailable if the service is still away or overloaded after `patience_s`, and
        RetrievalError if it refuses.
        """
        content = json.dumps(body).encode()
        retrying = Retrying(
            retry=retry_if_exception_type(Unavailable),
            wait=wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
            stop=stop_after_delay(self._patience_s),
            reraise=True,
        )
        return retrying(self._once, content)

    def unknown_form(self, answer: Any, wanted: str) -> RetrievalError:
        """The error for an answer that has not the form `wanted`."""
        return RetrievalError(
            f"{self._what} answered in an unknown form: {str(answer)[:_SHOWN]}", remedy=f"it must answer {wanted}"
        )

    def _once(self, content: bytes) -> Any:
        try:
            response = self._client.post(self._url, content=content, headers={"content-type": "application/json"})
        except httpx.HTTPError as cause:
            raise Unavailable(
                f"{self._what} does not answer: {type(cause).__name__} {cause}", remedy="start it, or correct `url`"
            ) from cause
        if response.status_code >= 400:
            reason = f"{self._what} answered with {response.status_code}: {response.text[:_SHOWN]}"
            if response.status_code in _PASSING:
                raise Unavailable(reason, remedy="see the message and the service's log")
            key = f"set the environment variable {self._key_variable or '… (name it in `key_variable`)'} to its key"
            raise RetrievalError(
                reason, remedy=key if response.status_code in (401, 403) else "see the message and the service's log"
            )
        try:
            return response.json()
        except ValueError as cause:
            raise self.unknown_form(response.text, "JSON") from cause
