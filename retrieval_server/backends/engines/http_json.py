"""Calls an engine's JSON interface over HTTP, with its key and its errors."""

import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import httpx

from retrieval_server.backends.engines.store import Store
from retrieval_server.errors import RetrievalError, Unavailable
from retrieval_server.services import SHOWN, Key, client, refusal

MOST_BYTES = 16 << 20  # of a request that writes; Qdrant accepts 32 MB


class HttpJson:
    """A client of the engine at `url`. The key is read from the environment variable `key_variable`, if it has one."""

    def __init__(self, engine: str, url: str, *, key_variable: str, key_header: str, key_form: str, timeout_s: float):
        self._key = Key(key_variable, scheme=key_header == "authorization")
        self._engine = f"{engine} at {url}"
        headers = {key_header: key_form.format(self._key.value)} if self._key.value else {}
        self._client = client(url.rstrip("/"), headers=headers, timeout_s=timeout_s)

    def call(self, method: str, path: str, body: Any = None, *, lines: bytes | None = None, absent: Any = None) -> Any:
        """The answer's JSON; `absent` in place of a 404, if it is not None. `lines` is a body of JSON lines.

        Raises Unavailable if the engine is away or overloaded, and RetrievalError if it refuses.
        """
        content = lines if lines is not None else None if body is None else json.dumps(body).encode()
        form = {"content-type": "application/x-ndjson" if lines is not None else "application/json"}
        try:
            response = self._client.request(method, path, content=content, headers=form if content else None)
        except httpx.HTTPError as cause:
            raise Unavailable(
                f"{self._engine} does not answer: {type(cause).__name__} {self._key.hide(str(cause))}",
                remedy="start it, or correct `url`; see the message",
            ) from None
        if response.status_code == 404 and absent is not None:
            return absent
        if response.status_code >= 400:
            raise self._refused(method, path, response)
        try:
            return response.json()
        except ValueError as cause:
            raise RetrievalError(
                f"{self._engine} answered {method} {path} with no JSON: {self._key.hide(response.text)[:SHOWN]!r}",
                remedy="give `url` the engine's address",
            ) from cause

    def _refused(self, method: str, path: str, response: httpx.Response) -> RetrievalError:
        text = self._key.hide(response.text)[:SHOWN]
        reason = f"{self._engine} answered {method} {path} with {response.status_code}: {text}"
        key = f"set the environment variable {self._key.variable} to the engine's key"
        return refusal(reason, response, key=key, log="the engine's log")

    def close(self) -> None:
        """Close all connections."""
        self._client.close()


class HttpStore(Store):
    """An index that an engine holds at one path of its interface: PUT makes it, DELETE removes it."""

    def __init__(self, http: HttpJson, path: str) -> None:
        self._http, self._path = http, path

    @abstractmethod
    def _made(self) -> dict[str, Any]:
        """The body of the PUT."""

    def _call(self, method: str, path: str, body: Any = None, *, lines: bytes | None = None) -> Any:
        return self._http.call(method, self._path + path, body, lines=lines)

    def _is_there(self) -> bool:
        return self._http.call("GET", self._path, absent={}) != {}

    def close(self) -> None:
        self._http.close()

    def prepare(self, *, fresh: bool) -> bool:
        there = self._is_there()
        if there and fresh:
            self._call("DELETE", "")
            there = False
        if not there:
            self._call("PUT", "", self._made())
        return there


def in_requests(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """The rows in lists whose JSON is at most MOST_BYTES, unless a row alone is longer."""
    some: list[Mapping[str, Any]] = []
    size = 0
    for row in rows:
        length = len(json.dumps(row))
        if some and size + length > MOST_BYTES:
            yield some
            some, size = [], 0
        some.append(row)
        size += length
    if some:
        yield some
