"""Sends the requests of an httpx client through aiohttp, for a tenth of the processor time of httpx's own sender.

`connections` puts it into every asynchronous client, for addresses that are reached without a proxy. The clients'
interface, their errors and their tests stay httpx's. An error says whether the request may have been carried out, as
httpx's own sender does: only a connection that never came about is a `ConnectError` or a `ConnectTimeout`.
"""

import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import aiohttp
import httpx
from yarl import URL

# Servers close an idle connection after 5 s (uvicorn's default) or more. We do so before, so that no request is sent
# into a connection that its server is closing: such a request may have been carried out, and some are not repeated.
KEEP_IDLE_S = 4.0
_LONGEST_FIELD = 1 << 16  # of an answer's headers, in bytes; about what httpx's own sender takes
# The kernel notices within two minutes that a server has vanished, however long its answer may take.
KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
)


@contextmanager
def _httpx_errors() -> Iterator[None]:
    """Raise aiohttp's errors as the errors that httpx's own sender raises in the same situation."""
    try:
        yield
    except aiohttp.ConnectionTimeoutError as cause:
        raise httpx.ConnectTimeout(str(cause)) from cause
    except aiohttp.ClientConnectorError as cause:
        raise httpx.ConnectError(str(cause)) from cause
    except TimeoutError as cause:
        raise httpx.ReadTimeout(str(cause)) from cause
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as cause:
        raise httpx.UnsupportedProtocol(f"no address of a web server: {cause}") from cause
    except (aiohttp.ClientPayloadError, aiohttp.ClientOSError) as cause:
        raise httpx.ReadError(str(cause)) from cause
    except aiohttp.ClientError as cause:
        raise httpx.RemoteProtocolError(str(cause)) from cause
    except ValueError as cause:  # a header that can not be sent
        raise httpx.LocalProtocolError(str(cause)) from cause


def _socket(address: Any) -> socket.socket:
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    for option in KEEPALIVE:
        made.setsockopt(*option)
    return made


class _Body(httpx.AsyncByteStream):
    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _httpx_errors():
            async for part in self._response.content.iter_any():
                yield part

    async def aclose(self) -> None:
        self._response.release()


class AiohttpTransport(httpx.AsyncBaseTransport):
    """At most `calls` requests at a time, None: any number. `verify` is httpx's."""

    def __init__(self, *, verify: Any, calls: int | None) -> None:
        self._verify = verify
        self._calls = calls

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return httpx.create_ssl_context(verify=self._verify)

    @cached_property
    def _session(self) -> aiohttp.ClientSession:
        # Made at the first request: it belongs to the event loop that runs then.
        connector = aiohttp.TCPConnector(limit=self._calls or 0, keepalive_timeout=KEEP_IDLE_S, socket_factory=_socket)
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # httpx decodes the answer, as its headers say
            max_line_size=_LONGEST_FIELD,
            max_field_size=_LONGEST_FIELD,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url, headers, limits = request.url, request.headers, request.extensions.get("timeout", {})
        if url.userinfo:  # httpx has made a header of it
            url = url.copy_with(userinfo=b"")
        sent = [(name.decode("ascii"), value.decode(headers.encoding)) for name, value in headers.raw]
        try:
            body: Any = request.content or None
        except httpx.RequestNotRead:
            body = request.stream
            sent = [(name, value) for name, value in sent if name.lower() != "transfer-encoding"]  # aiohttp adds it
        timeout = aiohttp.ClientTimeout(
            total=None, connect=limits.get("pool"), sock_connect=limits.get("connect"), sock_read=limits.get("read")
        )
        with _httpx_errors():
            response = await self._session.request(
                request.method,
                URL(str(url), encoded=True),
                data=body,
                headers=sent,
                allow_redirects=False,
                timeout=timeout,
                ssl=self._tls if url.scheme == "https" else True,
            )
        return httpx.Response(response.status, headers=response.raw_headers, stream=_Body(response))

    async def aclose(self) -> None:
        if "_session" in self.__dict__:
            await self._session.close()
