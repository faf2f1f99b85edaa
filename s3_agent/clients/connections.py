"""The HTTP clients of this package. They use the environment's proxy for other machines, and never for this one
(`retrieval_server.proxies`)."""

from collections.abc import Callable, Mapping
from typing import Any

import httpx

from retrieval_server.proxies import proxy_of
from s3_agent.clients.transport import KEEPALIVE, AiohttpTransport

KEPT = 64


class _Routes[T]:
    """A transport for each proxy that the environment names, and one without a proxy, created when first needed."""

    def __init__(self, make: Callable[[str | None], T]) -> None:
        self._make = make
        self._by_origin: dict[tuple[str, str, int | None], T] = {}
        self.made: dict[str | None, T] = {}

    def to(self, url: httpx.URL) -> T:
        origin = (url.scheme, url.host, url.port)
        if origin not in self._by_origin:
            proxy = proxy_of(str(url))
            if proxy not in self.made:
                self.made[proxy] = self._make(proxy)
            self._by_origin[origin] = self.made[proxy]
        return self._by_origin[origin]


class _AsyncTransport(httpx.AsyncBaseTransport):
    def __init__(self, *, verify: Any, calls: int | None) -> None:
        self._verify = verify
        self._calls = calls
        self._routes = _Routes(self._made)

    def _made(self, proxy: str | None) -> httpx.AsyncBaseTransport:
        if proxy is None:
            return AiohttpTransport(verify=self._verify, calls=self._calls)
        # httpx's own sender knows more kinds of proxies. Its work grows with the square of the idle connections.
        limits = httpx.Limits(max_connections=self._calls, max_keepalive_connections=KEPT)
        return httpx.AsyncHTTPTransport(proxy=proxy, socket_options=KEEPALIVE, verify=self._verify, limits=limits)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._routes.to(request.url).handle_async_request(request)

    async def aclose(self) -> None:
        for transport in self._routes.made.values():
            await transport.aclose()


class _Transport(httpx.BaseTransport):
    def __init__(self) -> None:
        self._routes = _Routes(lambda proxy: httpx.HTTPTransport(proxy=proxy))

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._routes.to(request.url).handle_request(request)

    def close(self) -> None:
        for transport in self._routes.made.values():
            transport.close()


def async_client(
    *,
    timeout: httpx.Timeout | float,
    headers: Mapping[str, str] | None = None,
    calls: int | None = None,
    verify: Any = True,
) -> httpx.AsyncClient:
    """A client for any addresses. Timeouts are in seconds, `verify` is httpx's.

    At most `calls` calls run at a time; None: any number. httpx's own default is 100. Further calls would wait for a
    connection, and that time would count as if the server were slow.
    """
    return httpx.AsyncClient(transport=_AsyncTransport(verify=verify, calls=calls), timeout=timeout, headers=headers)


def client(*, timeout: httpx.Timeout | float, follow_redirects: bool = False) -> httpx.Client:
    """The same for synchronous code."""
    return httpx.Client(transport=_Transport(), timeout=timeout, follow_redirects=follow_redirects)


def get(url: str, *, timeout: float, **options: Any) -> httpx.Response:
    """One GET; `options` are those of `httpx.Client.get`."""
    with client(timeout=timeout) as http:
        return http.get(url, **options)
