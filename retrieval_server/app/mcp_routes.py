"""Serves the tools at `/mcp` of the retrieval server, behind the same key.

Requests are answered one by one, as JSON and without sessions, so that `curl` can call a tool. The tools call the
routes of the same application, in this process.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.util import find_spec

import httpx
from fastapi import FastAPI

from retrieval_server.config import ServerSettings
from retrieval_server.errors import RetrievalError

_INSIDE = "http://retrieval.internal"


def require_mcp() -> None:
    """Raises RetrievalError if the package is not installed."""
    if find_spec("mcp") is None or find_spec("mcp.server.mcpserver") is None:
        raise RetrievalError("--mcp needs the package mcp, version 2", remedy="pip install 's3-agent[mcp]'")


@asynccontextmanager
async def tools_at_mcp(app: FastAPI, settings: ServerSettings, key: str | None) -> AsyncIterator[None]:
    """Adds the routes of the tools while the block runs."""
    from retrieval_server.mcp.client import Routes
    from retrieval_server.mcp.dialects import DIALECTS, make_server, path_of

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with AsyncExitStack() as stack:
        inside = httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=False),
            base_url=_INSIDE,
            headers=headers,
            timeout=None,
        )
        routes = Routes(await stack.enter_async_context(inside))
        for dialect in DIALECTS:
            server = make_server(routes, characters=settings.mcp_characters, dialect=dialect)
            served = server.streamable_http_app(
                streamable_http_path=path_of(dialect), json_response=True, stateless_http=True, host=settings.host
            )
            # Routes of this application, not a mounted one: a mount answers POST /mcp with a redirect.
            app.router.routes.extend(served.routes)
            await stack.enter_async_context(server.session_manager.run())
        yield
