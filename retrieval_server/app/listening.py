"""Configures the HTTP server, in one place for every process that starts one."""

import asyncio
from functools import partial
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from retrieval_server.config import HttpSettings

# Longer than clients keep an idle connection (httpx 5 s, aiohttp 15 s), so that the client closes it, between requests.
KEEP_ALIVE_S = 75


class TimedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 over h11, which limits the size of a head, plus a time limit for a request to arrive.

    uvicorn itself waits forever for the rest of a head or body: each client that dies half way would keep a file
    descriptor, until none is left for a health check.
    """

    def __init__(self, *arguments: Any, request_s: float, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._request_s = request_s
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._time()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._time()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.trailing_data[0]:  # the start of the next request, which arrived with the last one
            self._time()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _time(self) -> None:
        """The time limit covers the whole request, from its first byte to its last, however slowly they arrive."""
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._stop()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._request_s, self.transport.close)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def http_server(app: FastAPI, settings: HttpSettings) -> uvicorn.Server:
    """A server for the settings' address; after SIGTERM it finishes its open requests."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=partial(TimedProtocol, request_s=settings.request_s),  # pyright: ignore[reportArgumentType]
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=round(settings.shutdown_s),
    )
    return uvicorn.Server(config)
