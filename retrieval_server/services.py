"""Asks services over HTTP: their keys, the environment's proxy, their errors, and calls repeated while one is away.

Every client of a service has its key and its connections from here. `ModelService` is for rerankers and encoders that
run elsewhere, in the thread that searches.
"""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, quote_plus

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from retrieval_server.errors import RequestRefused, RetrievalError, Unavailable
from retrieval_server.proxies import proxy_of
from retrieval_server.retry_after import retry_after_s

HIDDEN = "[key]"
SHOWN = 300  # characters of an answer in an error
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
KEY_REFUSED = frozenset({401, 403})
_BY_THE_REQUEST = frozenset({400, 413, 422})
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 2.0
_GROWING = wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S)


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


class Key:
    """The key in an environment variable, without the white space around it; it may be empty. Its own text never
    shows it."""

    def __init__(self, variable: str, environment: Mapping[str, str] = os.environ, *, scheme: bool = False) -> None:
        """With `scheme`, the value is a scheme, one space and the key. Raises RetrievalError for what is no key."""
        self.variable = variable
        self.value = environment.get(variable, "").strip()
        if not (self.value.isascii() and self.value.isprintable()) or self.value.count(" ") > int(scheme):
            # httpx would name the whole value in its error.
            raise RetrievalError(
                f"{variable} holds no key: there are spaces or special characters in it", remedy="copy the key again"
            )
        spellings: set[str] = set()
        for part in {self.value, self.value.rpartition(" ")[2]} - {""}:
            spellings |= {part, quote(part), quote(part, safe=""), quote_plus(part), json.dumps(part)[1:-1]}
        self._spellings = sorted(spellings, key=len, reverse=True)

    def hide(self, text: str) -> str:
        """The text without the key, in whichever spelling."""
        for spelling in self._spellings:
            text = text.replace(spelling, HIDDEN)
        return text


def client(url: str, *, headers: Mapping[str, str], timeout_s: float) -> httpx.Client:
    """A client of the service at `url`; paths are relative to it. It uses the environment's proxy, but not for this
    machine."""
    transport = httpx.HTTPTransport(proxy=proxy_of(url))
    return httpx.Client(base_url=url, transport=transport, headers=headers, timeout=timeout_s)


def async_client(url: str, *, headers: Mapping[str, str], timeout_s: float) -> httpx.AsyncClient:
    """The same for asynchronous code."""
    transport = httpx.AsyncHTTPTransport(proxy=proxy_of(url))
    return httpx.AsyncClient(base_url=url, transport=transport, headers=headers, timeout=timeout_s)


def refusal(reason: str, answer: httpx.Response, *, key: str, log: str) -> RetrievalError:
    """The error for an answer of 400 or more: Unavailable if the status passes, RequestRefused if another request may
    be accepted. `key`: the remedy if the key is refused; `log`: whose log to read."""
    remedy = f"see the message and {log}"
    if answer.status_code in _PASSING:
        return Unavailable(reason, remedy=remedy, retry_after_s=retry_after_s(answer.headers.get("retry-after")))
    if answer.status_code in _BY_THE_REQUEST:
        return RequestRefused(reason, remedy=remedy)
    return RetrievalError(reason, remedy=key if answer.status_code in KEY_REFUSED else remedy)


def patiently[T](call: Callable[[], T], *, patience_s: float) -> T:
    """The call's result. While it raises Unavailable it is repeated, as late as the service asks for, else after
    growing times.

    Raises the last Unavailable once the patience is over, and at once if the service asks for a longer wait than that.
    """

    def asked(state: RetryCallState) -> float | None:
        error = state.outcome.exception() if state.outcome else None
        return error.retry_after_s if isinstance(error, Unavailable) else None

    def wait(state: RetryCallState) -> float:
        seconds = asked(state)
        return _GROWING(state) if seconds is None else seconds

    def stop(state: RetryCallState) -> bool:
        left = patience_s - (state.seconds_since_start or 0.0)
        return left <= 0 or (asked(state) or 0.0) > left

    return Retrying(retry=retry_if_exception_type(Unavailable), wait=wait, stop=stop, reraise=True)(call)


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
        self._key = None if key_variable is None else Key(key_variable)
        if self._key is not None and not self._key.value:
            raise RetrievalError(
                f"the key of {self._what} is missing: {key_variable} is not set", remedy=f"export {key_variable}=…"
            )
        headers = {"authorization": f"Bearer {self._key.value}"} if self._key else {}
        self._client = client(url, headers=headers, timeout_s=timeout_s)

    def post(self, body: Mapping[str, Any]) -> Any:
        """The answer's JSON. Raises Unavailable if the service is still away or overloaded after `patience_s`,
        RequestRefused if it refuses this request, and RetrievalError if it refuses any.
        """
        content = json.dumps(body).encode()
        return patiently(lambda: self._once(content), patience_s=self._patience_s)

    def unknown_form(self, answer: Any, wanted: str) -> RetrievalError:
        """The error for an answer that has not the form `wanted`."""
        return RetrievalError(
            f"{self._what} answered in an unknown form: {self._hidden(str(answer))[:SHOWN]}",
            remedy=f"it must answer {wanted}",
        )

    def _hidden(self, text: str) -> str:
        return self._key.hide(text) if self._key else text

    def _once(self, content: bytes) -> Any:
        try:
            response = self._client.post(self._url, content=content, headers={"content-type": "application/json"})
        except httpx.HTTPError as cause:
            raise Unavailable(
                f"{self._what} does not answer: {type(cause).__name__} {self._hidden(str(cause))}",
                remedy="start it, or correct `url`",
            ) from None
        if response.status_code >= 400:
            reason = f"{self._what} answered with {response.status_code}: {self._hidden(response.text)[:SHOWN]}"
            key = f"set the environment variable {self._key_variable or '… (name it in `key_variable`)'} to its key"
            raise refusal(reason, response, key=key, log="the service's log")
        try:
            return response.json()
        except ValueError as cause:
            raise self.unknown_form(response.text, "JSON") from cause
