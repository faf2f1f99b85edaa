"""Several retrieval servers over one index: spreads the requests, leaves out a server that fails, takes it back.

`HttpRetriever` uses it when it has more than one address. Every process checks by itself that all servers report the
same index in `GET /readyz`. A server that comes back with another index is not used again.
"""

import asyncio
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import httpx
import structlog

from retrieval_server.retry_after import retry_after_s
from s3_agent.clients.connections import get
from s3_agent.clients.http import passes, retry_wait_s
from s3_agent.errors import RetrieverError

log = structlog.get_logger()

PROBE_S = 5.0
"""Seconds within which a healthy server answers `GET /readyz`, also while it searches."""
START_S = 10.0
"""The same before a job starts."""
PATROL_S = 15.0
"""Seconds after which a server that has not answered a request is asked whether it is alive, again and again."""
BEFORE = "the servers at the beginning"
SAME_INDEX = "serve the same corpus with the same index settings at every address, or leave one of them out"

Identity = dict[str, Any] | None
"""The manifest that a server reports; None for a server without one, such as Search-R1's."""


def addresses(url: str) -> tuple[str, ...]:
    """The addresses in `url`: one, or several separated by commas."""
    return tuple(dict.fromkeys(part.strip().rstrip("/") for part in url.split(",") if part.strip()))


def reported_identity(answer: httpx.Response) -> Identity:
    """The index's manifest in an answer to `GET /readyz`; None if it holds none."""
    try:
        told = answer.json() if answer.is_success else None
    except ValueError:
        return None
    if not isinstance(told, dict) or "corpus" not in told:
        return None
    return told


def served_identities(url: str) -> dict[str, Identity]:
    """What the servers at the addresses in `url` report of their index, by address.

    A server that does not answer, or that is loading, is left out. Raises RetrieverError if none is left.
    """
    identities: dict[str, Identity] = {}
    reasons: list[str] = []
    for address in addresses(url):
        try:
            answer = get(f"{address}/readyz", timeout=START_S)
        except httpx.HTTPError as cause:
            reasons.append(f"{address} does not answer: {cause}")
            continue
        if passes(answer.status_code):
            reasons.append(f"{address} is not ready: {_progress(answer)}")
        else:
            identities[address] = reported_identity(answer)
    if reasons and not identities:
        raise RetrieverError(
            f"no retriever tells its index: {'; '.join(reasons)}",
            remedy="wait until GET /readyz answers 200 there, or read the retriever's own log",
        )
    return identities


def _progress(answer: httpx.Response) -> str:
    """What a server that is loading reports of it (docs/retrieval.md)."""
    try:
        told = answer.json()
        message, progress = str(told["error"]["message"]), told.get("progress") or {}
        return f"{message}, {progress['done']} of {progress['total']}" if progress.get("total") else message
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"status {answer.status_code}"


def difference(identities: Mapping[str, Identity]) -> str | None:
    """Why requests can not go to any of these servers, by address: two of them have different indexes. None if they
    can."""
    urls = list(identities)
    for first, url in pairwise(urls):
        wanted, identity = identities[first], identities[url]
        if identity != wanted:
            return f"{first} and {url} serve different indexes: {_told(wanted, identity)}"
    return None


def _told(one: Identity, other: Identity) -> str:
    if one is None or other is None:
        return "only one of them reports its index (GET /readyz)"
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    return "; ".join(f"{key} is {json.dumps(one.get(key))} and {json.dumps(other.get(key))}" for key in keys)


@dataclass(slots=True, eq=False)
class _Server:
    url: str
    well: bool = False
    open: int = 0
    """Requests that it has not answered yet."""
    failures: int = 0
    """Failures since its last good answer."""
    rests_until: float = 0.0
    reason: str = "it was not asked yet"
    probe: asyncio.Task[None] | None = None


class Servers:
    """The client of `call_json` for a service at several addresses. Belongs to one event loop.

    A request goes to the well server with the fewest open requests. If that one fails, the others are tried at once;
    only when every server has failed, the caller gets the last failure, and waits and tries again like with one server.
    """

    def __init__(self, client: httpx.AsyncClient, urls: Sequence[str], *, patrol_s: float = PATROL_S) -> None:
        self.url = ",".join(urls)
        self._client = client
        self._servers = [_Server(url) for url in urls]
        self._patrol_s = patrol_s
        self._known = False
        self._identity: Identity = None
        self._checking: asyncio.Task[None] | None = None

    async def request(self, method: str, url: str, **options: Any) -> httpx.Response:
        """The answer of one server to `url`, which begins with `self.url`. `options` are httpx's.

        Raises httpx.RequestError if no server can be reached, and RetrieverError if their indexes differ.
        """
        path, tried = url.removeprefix(self.url), set[_Server]()
        await self._first_check()
        self._begin_probes()
        failure: httpx.Response | httpx.RequestError | None = None
        while (server := await self._next(tried)) is not None:
            tried.add(server)
            try:
                answer = await self._ask(server, method, path, options)
            except httpx.RequestError as cause:
                self._rest(server, f"{type(cause).__name__} {cause}".strip())
                failure = cause
                continue
            if not passes(answer.status_code):
                server.failures = 0
                return answer
            self._rest(server, f"status {answer.status_code}", retry_after_s(answer.headers.get("retry-after")))
            failure = answer
        if isinstance(failure, httpx.Response):
            return failure
        raise failure or self._none_answers()

    def _none_answers(self) -> httpx.ConnectError:
        return httpx.ConnectError("; ".join(f"{server.url}: {server.reason}" for server in self._servers))

    async def _next(self, tried: set[_Server]) -> _Server | None:
        """The well server with the fewest open requests. If there is none, whichever is found well first now."""
        left = [server for server in self._servers if server not in tried]
        if not any(server.well for server in left):
            await asyncio.gather(*(asyncio.shield(self._begin_probe(server)) for server in left))
        well = [server for server in left if server.well]
        return min(well, key=lambda server: (server.open, random.random())) if well else None

    async def _ask(self, server: _Server, method: str, path: str, options: Any) -> httpx.Response:
        """One request. While its answer takes long, the server must show that it is alive."""
        server.open += 1
        call = asyncio.ensure_future(self._client.request(method, server.url + path, **options))
        try:
            while not (await asyncio.wait((call,), timeout=self._patrol_s))[0]:
                await self._probe(server)
            return call.result()
        finally:
            server.open -= 1
            call.cancel()

    def _rest(self, server: _Server, reason: str, retry_after: float | None = None) -> None:
        if server.well:
            others = sum(other.well for other in self._servers) - 1
            log.warning("a retriever is left out", url=server.url, reason=reason, others=others)
        server.well, server.reason = False, reason
        server.failures += 1
        server.rests_until = time.monotonic() + retry_wait_s(server.failures, retry_after)

    async def _first_check(self) -> None:
        """Ask every server once for its index, however many requests wait for that.

        Raises RetrieverError if two differ, and httpx.ConnectError if none answers.
        """
        if self._known:
            return
        if self._checking is None or (self._checking.done() and self._checking.exception() is None):
            self._checking = asyncio.create_task(self._compare())
        await asyncio.shield(self._checking)
        if not self._known:
            raise self._none_answers()

    async def _compare(self) -> None:
        found = await asyncio.gather(*(self._probe(server) for server in self._servers), return_exceptions=True)
        identities: dict[str, Identity] = {}
        for server, identity in zip(self._servers, found, strict=True):
            if isinstance(identity, httpx.RequestError):
                self._rest(server, str(identity))
            elif isinstance(identity, BaseException):
                raise identity
            else:
                identities[server.url] = identity
                server.well = True
        if not identities:
            return
        if different := difference(identities):
            raise RetrieverError(different, remedy=SAME_INDEX, status=409)
        self._identity = next(iter(identities.values()))
        self._known = True

    async def _probe(self, server: _Server) -> Identity:
        """What the server reports of its index. Raises httpx.RequestError if it can not answer requests now."""
        answer = await self._client.get(f"{server.url}/readyz", timeout=PROBE_S)
        if passes(answer.status_code):
            raise httpx.ConnectError(f"GET {server.url}/readyz answered with status {answer.status_code}")
        return reported_identity(answer)

    def _begin_probes(self) -> None:
        """Let servers whose rest has ended show that they are well, while others answer."""
        now = time.monotonic()
        for server in self._servers:
            if not server.well and server.rests_until <= now:
                self._begin_probe(server)

    def _begin_probe(self, server: _Server) -> asyncio.Task[None]:
        if server.probe is None or server.probe.done():
            server.probe = asyncio.create_task(self._readmit(server))
        return server.probe

    async def _readmit(self, server: _Server) -> None:
        try:
            identity = await self._probe(server)
        except (httpx.RequestError, RuntimeError) as cause:  # RuntimeError: the client was closed meanwhile
            self._rest(server, f"{type(cause).__name__} {cause}".strip())
            return
        if different := difference({BEFORE: self._identity, server.url: identity}):
            if server.reason != different:
                log.error("a retriever came back with another index and is not used", reason=different)
            self._rest(server, different)
            return
        if not server.well:
            log.info("a retriever is used again", url=server.url)
        server.well = True
