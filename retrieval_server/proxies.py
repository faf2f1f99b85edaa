"""Which proxy the environment names for an address: never one for this machine.

Otherwise keys and prompts for 127.0.0.1 would go to the proxy that `HTTP_PROXY` names. Every HTTP client of both
packages asks `proxy_of`. Libraries that create their own clients, and processes that are started, get an environment in
which each HTTP client can be created and none uses a proxy for this machine (`sparing_loopback`, `spare_loopback`).
"""

import os
import socket
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from ipaddress import IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass_environment  # pyright: ignore[reportAttributeAccessIssue]

import httpx

LOOPBACK = ("127.0.0.1", "localhost", "::1")
NO_PROXY = ("NO_PROXY", "no_proxy")
DIRECT = dict.fromkeys(NO_PROXY, "*")
"""The environment of a process that uses no proxy at all."""

_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


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


def usable_proxy(value: str) -> str | None:
    """The address of the proxy that a variable names; None where httpx, and what is built on it, can not use it.

    Not usable are a SOCKS proxy without the package `socksio`, a scheme such as `socks://` or `socks4://`, and a value
    that is not an address. While the environment names one of these, no httpx client can be created.
    """
    address = value if "://" in value else f"http://{value}"
    try:
        scheme = httpx.Proxy(address).url.scheme
    except (ValueError, httpx.InvalidURL):
        return None
    return address if not scheme.startswith("socks") or find_spec("socksio") else None


def _unproxied(environment: Mapping[str, str]) -> list[str]:
    """The hosts in NO_PROXY and in no_proxy: most programs read only one of the two spellings."""
    named = [part.strip() for name in NO_PROXY for part in environment.get(name, "").split(",")]
    return [*dict.fromkeys(filter(None, named))]


def _is_unproxied(host: str, port: int | None, named: list[str]) -> bool:
    if proxy_bypass_environment(f"{host}:{port}" if port else host, {"no": ",".join(named)}):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    for part in named:
        try:
            if address in ip_network(part.strip("[]"), strict=False):
                return True
        except ValueError:
            continue
    return False


def proxy_of(url: str) -> str | None:
    """The environment's proxy for `url`; None for this machine, and without a proxy that can be used."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host) or _is_unproxied(host, parts.port, _unproxied(os.environ)):
        return None
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return usable_proxy(proxy) if proxy else None


def _readable(named: list[str]) -> Iterator[str]:
    """The entries of NO_PROXY that httpx can use as patterns.

    `[::1]` becomes `::1`. Entries that httpx can not read, such as a range of IPv6 addresses, are left out: with a
    single one, no httpx client can be created.
    """
    for part in named:
        bare = part.removeprefix("[").removesuffix("]")
        pattern = part
        if "://" not in part:
            try:
                part, pattern = bare, f"all://[{bare}]" if ip_address(bare).version == 6 else f"all://{bare}"
            except ValueError:
                pattern = f"all://[{part}]" if _is_ipv6_range(part) else f"all://*{part}"
        try:
            httpx.URL(pattern)
        except (ValueError, httpx.InvalidURL):
            continue
        yield part


def _is_ipv6_range(part: str) -> bool:
    try:
        return ip_address(part.partition("/")[0]).version == 6
    except ValueError:
        return False


def sparing_loopback(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` with proxies that every HTTP client can use or ignore, and none of them for this machine.

    Both spellings of NO_PROXY get the hosts of either one and this machine. Proxies that can not be used are left out.
    """
    kept = {
        name: value
        for name, value in environment.items()
        if name.lower() not in _PROXIES or not value or usable_proxy(value)
    }
    named = ",".join(dict.fromkeys([*_readable(_unproxied(environment)), *LOOPBACK]))
    return kept | dict.fromkeys(NO_PROXY, named)


def spare_loopback() -> None:
    """Give this process the environment of `sparing_loopback`, for libraries that create their own clients."""
    spared = sparing_loopback(os.environ)
    for name in os.environ.keys() - spared.keys():
        del os.environ[name]
    os.environ.update(spared)
