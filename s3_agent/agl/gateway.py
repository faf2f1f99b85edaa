"""`python -m s3_agent.agl.gateway`: Agent Lightning's gateway without its limit of 100 policy calls at a time.

A run starts its gateway with this command. The HTTP client of the stock `agl-server` has 100 connections: with 480
rollouts, 380 wait for a connection, and the gateway repeats a call that takes 300 s including this wait. This command
takes the same options and one more, `+policy_calls=N`, which sets a limit. It builds Agent Lightning's own application
and replaces only that client. A call can take as long as its agent waits: when the agent disconnects, the gateway
cancels the call.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import httpx
import hydra
import uvicorn
from agentlightning.server.app import create_app
from fastapi import FastAPI
from omegaconf import DictConfig

from retrieval_server.proxies import spare_loopback
from s3_agent.clients.connections import async_client
from s3_agent.clients.gateway_limit import LIMIT_PATH, POLICY_CALLS
from s3_agent.errors import ConfigError, LaunchError

CONNECT_S = 10.0


def gateway_app(config: DictConfig) -> FastAPI:
    """Agent Lightning's application for its own `config`, without the limit of its HTTP client.

    Raises ConfigError for an invalid limit. The application raises LaunchError at its start if Agent Lightning does not
    keep its client in `app.state.http_client`.
    """
    calls: Any = config.get(POLICY_CALLS)
    if calls is not None and not (isinstance(calls, int) and calls >= 1):
        raise ConfigError(f"{POLICY_CALLS} is {calls!r}", remedy="give a number of at least 1, or leave it out")
    app = create_app(config)
    stock_lifespan = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
        async with stock_lifespan(app) as state:
            stock = getattr(app.state, "http_client", None)
            if not isinstance(stock, httpx.AsyncClient):
                raise LaunchError(
                    f"the gateway of agentlightning {version('agentlightning')} has no app.state.http_client; in "
                    "1.0.2, that is the client of its policy calls",
                    remedy="install agentlightning==1.0.2, or run agl-server itself and set gateway.url",
                )
            await stock.aclose()  # code that still uses it fails at its first call, instead of being limited silently
            timeout = httpx.Timeout(None, connect=CONNECT_S)
            async with async_client(timeout=timeout, calls=calls) as client:
                app.state.http_client = client
                yield state

    app.router.lifespan_context = lifespan

    @app.get(LIMIT_PATH)
    async def limit() -> dict[str, int | None]:
        return {POLICY_CALLS: calls}

    return app


@hydra.main(version_base=None, config_path="pkg://agentlightning.config", config_name="server")
def main(config: DictConfig) -> None:
    """Serve until stopped, as `agl-server` does, with an environment in which its HTTP clients can be created."""
    spare_loopback()
    uvicorn.run(gateway_app(config), host=str(config.host), port=int(config.port), timeout_keep_alive=120)


if __name__ == "__main__":
    main()
