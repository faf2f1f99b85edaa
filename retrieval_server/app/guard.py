"""ASGI middleware: checks the key, limits the size of bodies, and counts and times requests.

It is plain ASGI, since each layer of a framework's middleware would cost as much as the rest of a request.
"""

import hmac
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from retrieval_server.app.refusals import Refused
from retrieval_server.metrics import Metrics

OPEN = ("/healthz", "/readyz")
COUNTED = {"POST": ("/retrieve", "/grep", "/rerank"), "GET": ("/documents",)}
CLIENT_GONE = 499


class Guard:
    """Refuses requests without the key (except health checks), and reads no more of a body than the limit."""

    def __init__(self, app: ASGIApp, *, key: str | None, max_body_bytes: int, metrics: Metrics) -> None:
        self._app = app
        self._wanted = None if key is None else f"Bearer {key}".encode()
        self._limit = max_body_bytes
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begin = time.perf_counter()
        status = CLIENT_GONE  # no response was sent

        async def counted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._guarded(scope, receive, counted)
        finally:
            route = "/" + scope["path"].removeprefix("/").partition("/")[0]
            if route in COUNTED.get(scope["method"], ()):
                self._metrics.answered(route=route, status=status, seconds=time.perf_counter() - begin)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._wanted is not None and scope["path"] not in OPEN:
            given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
            if not hmac.compare_digest(given, self._wanted):
                bearer = {"WWW-Authenticate": "Bearer"}
                remedy = "send the server's key as `Authorization: Bearer …`"
                refusal = Refused(401, "unauthorized", "the key is missing or wrong", remedy, headers=bearer)
                return await refusal.response()(scope, receive, send)
        messages: list[Message] = []
        size = 0
        while not messages or messages[-1].get("more_body"):
            messages.append(await receive())
            if messages[-1]["type"] == "http.disconnect":
                return None  # disconnected, or too slow, before the request was complete
            size += len(messages[-1].get("body", b""))
            if size > self._limit:
                refusal = Refused(413, "body_too_large", "the body is too large", f"send at most {self._limit} bytes")
                return await refusal.response()(scope, receive, send)
        rest = iter(messages)

        async def replay() -> Message:
            return next(rest, None) or await receive()

        await self._app(scope, replay, send)
