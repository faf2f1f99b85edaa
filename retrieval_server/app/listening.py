"""How the application is served: the HTTP server's settings, in one place for every process that starts one."""

import uvicorn
from fastapi import FastAPI

from retrieval_server.config import HttpSettings

# Longer than clients keep an idle connection (httpx 5 s, aiohttp 15 s): it is they who close it, between requests.
KEEP_ALIVE_S = 75


def http_server(app: FastAPI, settings: HttpSettings) -> uvicorn.Server:
    """A server for the settings' address; after SIGTERM it finishes the requests it has."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http="h11",  # bounds the size of a head, which httptools does not
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=round(settings.shutdown_s),
    )
    return uvicorn.Server(config)
