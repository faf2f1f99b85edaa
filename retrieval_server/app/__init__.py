"""The FastAPI application: it answers health checks at once and searches when the index is loaded."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response

from retrieval_server.app.guard import Guard
from retrieval_server.app.refusals import RESPONSES, Refused, answer_errors
from retrieval_server.app.service import Opener, Service, opener
from retrieval_server.config import ServerSettings
from retrieval_server.metrics import Metrics
from retrieval_server.schemas import NotReady, Ready, RetrieveRequest, RetrieveResponse

log = structlog.get_logger()

CLIENT_GONE = 499


def _checked(settings: ServerSettings, request: RetrieveRequest) -> list[str]:
    """The queries, as text that every tokenizer takes. Raises Refused beyond a limit."""
    count, limit = len(request.queries), settings.max_queries
    if count > limit:
        raise Refused(413, "too_many_queries", f"{count} queries", f"send at most {limit} a request")
    longest, limit = max(map(len, request.queries)), settings.max_query_characters
    if longest > limit:
        raise Refused(413, "query_too_long", f"a query has {longest} characters", f"send at most {limit}")
    if request.topk and request.topk > settings.max_topk:
        raise Refused(422, "topk_too_large", f"topk is {request.topk}", f"ask for at most {settings.max_topk}")
    return [query.encode("utf-8", "replace").decode() for query in request.queries]


async def _unless_gone(request: Request, work: asyncio.Task[bytes]) -> bytes | None:
    """What `work` returns; None, and `work` given up, when the client leaves before that."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    leaving = asyncio.create_task(gone())
    try:
        await asyncio.wait((work, leaving), return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        leaving.cancel()
        work.cancel()


def create_app(
    settings: ServerSettings,
    *,
    build: bool = False,
    key: str | None = None,
    on_failure: Callable[[], None] | None = None,
    opens: Opener | None = None,
) -> FastAPI:
    """The application over the settings' corpus and index, or over what `opens` opens.

    With `key`, clients must send it as a bearer token. `on_failure` is called when the index can not be loaded.
    """
    metrics = Metrics()
    service = Service(settings, metrics)

    async def load() -> None:
        try:
            await service.load(opens or opener(settings, build=build))
            log.info("ready", **(service.manifest or {}))
        except Exception as error:
            log.error("the index can not be loaded", error=str(error))
            if on_failure:
                on_failure()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(load())
        yield
        loading.cancel()
        await service.close()

    app = FastAPI(title="s3-agent retrieval server", lifespan=lifespan)
    app.add_middleware(Guard, key=key, max_body_bytes=settings.max_body_bytes, metrics=metrics)
    answer_errors(app)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Alive; says nothing of the index."""
        return {"status": "ok"}

    @app.get("/readyz", response_model=Ready, responses={503: {"model": NotReady, "description": "Loading, or failed"}})
    async def readyz() -> dict[str, Any]:
        """The index's manifest when it is loaded; until then 503 with the progress."""
        if service.manifest is None:
            message = service.failure or service.progress.stage or "the index is loading"
            after, progress = {"Retry-After": "1"}, service.progress.model_dump()
            raise Refused(503, "not_ready", message, "ask again", headers=after, progress=progress)
        return {"status": "ready", **service.manifest}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def show_metrics() -> Response:
        """Prometheus's text format."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.post("/retrieve", response_model=RetrieveResponse, responses=RESPONSES)
    async def retrieve(body: RetrieveRequest, request: Request) -> Response:
        """The best passages of each query, best first."""
        if service.manifest is None:
            await readyz()
        queries = _checked(settings, body)
        topk = min(body.topk or settings.topk, settings.max_topk)
        work = asyncio.create_task(service.retrieve(queries, topk=topk, scores=body.return_scores))
        answer = await _unless_gone(request, work)
        if answer is None:
            metrics.disconnected()
            return Response(status_code=CLIENT_GONE)
        return Response(answer, media_type="application/json")

    return app
