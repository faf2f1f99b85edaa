"""HTTP clients that use the environment's proxy for other machines, and never for this one.

Keys and prompts for 127.0.0.1 would otherwise go to whatever `HTTP_PROXY` names. Every client of ours is made here;
libraries that make their own, and processes that we start, are told by `NO_PROXY` (`sparing_loopback`).
"""

import socket
from collections.abc import Callable, Mapping
from ipaddress import IPv6Address, ip_address
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# With more connections than this, idle ones are closed: at every call httpcore compares each idle connection with all
# others, and a gateway that kept 480 of them took four times the processor time.
KEPT = 64
# The kernel notices within two minutes that a server has vanished, however long its answer may take.
KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
)


def is_loopback(host: str) -> bool:
    """Whether a host's name or address, in any form that the system's resolver takes, is this machine's own."""
    host = host.strip("[]").partition("%")[0].rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        try:
            address = ip_address(socket.inet_aton(host))  # 127.1 and the like
        except (OSError, ValueError):
            return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback or address.is_unspecified


def proxy_of(url: str) -> str | None:
    """The environment's proxy for `url`; None for this machine, and where there is none."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host) or proxy_bypass(f"{host}:{parts.port}" if parts.port else host):
        return None
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy or None


def sparing_loopback(environment: Mapping[str, str]) -> dict[str, str]:
    """`NO_PROXY` in both its spellings, with this machine added to what `environment` names."""
    named = [part.strip() for name in ("NO_PROXY", "no_proxy") for part in environment.get(name, "").split(",")]
    value = ",".join(dict.fromkeys([*filter(None, named), *LOOPBACK]))
    return {"NO_PROXY": value, "no_proxy": value}


class _Routes[T]:
    """A transport for each proxy that the environment names, and one without, made when first needed."""

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
    def __init__(self, **options: Any) -> None:
        self._routes = _Routes(lambda proxy: httpx.AsyncHTTPTransport(proxy=proxy, socket_options=KEEPALIVE, **options))

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

    At most `calls` are under way at a time, None: any number. httpx's own default is 100: further calls would wait for
    one of these connections, and that time counts as if the server were slow.
    """
    limits = httpx.Limits(max_connections=calls, max_keepalive_connections=KEPT)
    return httpx.AsyncClient(transport=_AsyncTransport(verify=verify, limits=limits), timeout=timeout, headers=headers)


def client(*, timeout: httpx.Timeout | float, follow_redirects: bool = False) -> httpx.Client:
    """The same for code that waits."""
    return httpx.Client(transport=_Transport(), timeout=timeout, follow_redirects=follow_redirects)


def get(url: str, *, timeout: float, **options: Any) -> httpx.Response:
    """One GET; `options` are those of `httpx.Client.get`."""
    with client(timeout=timeout) as http:
        return http.get(url, **options)
