"""The FastAPI application: it answers health checks immediately, and searches once the index is loaded."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from pydantic import BaseModel, TypeAdapter, ValidationError

from retrieval_server.app.guard import CLIENT_GONE, Guard
from retrieval_server.app.mcp_routes import tools_at_mcp
from retrieval_server.app.refusals import NOT_FOUND, RESPONSES, Refused, answer_errors, invalid
from retrieval_server.app.service import Opener, Service, opener
from retrieval_server.config import ServerSettings
from retrieval_server.metrics import Metrics
from retrieval_server.schemas import (
    CUT_HEADER,
    REFUSED_HEADER,
    Document,
    GrepRequest,
    GrepResponse,
    NotReady,
    Ready,
    RerankRequest,
    RerankResponse,
    RetrieveResponse,
    SearchRequest,
    as_json,
)

log = structlog.get_logger()

_DOCUMENT = TypeAdapter(Document)


def _body(form: type[BaseModel]) -> dict[str, Any]:
    """Describes the body of a route in the OpenAPI document, where references to `$defs` would lead nowhere."""
    schema = form.model_json_schema()
    definitions = schema.pop("$defs", {})

    def inlined(value: Any) -> Any:
        if isinstance(value, list):
            return [inlined(each) for each in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            return inlined(definitions[value["$ref"].rpartition("/")[2]])
        return {name: inlined(each) for name, each in value.items()}

    return {"requestBody": {"required": True, "content": {"application/json": {"schema": inlined(schema)}}}}


async def _asked[T: BaseModel](request: Request, form: type[T]) -> T:
    """The request in a body of any content type: several clients send none.

    Raises Refused or RequestValidationError.
    """
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise invalid(f"the body is not JSON: {error}") from error
    try:
        return form.model_validate(body)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error


def _checked(settings: ServerSettings, asked: SearchRequest) -> tuple[list[str], int]:
    """The queries, as text that every tokenizer accepts, and how many were cut. Raises Refused beyond a limit."""
    texts, longest = asked.texts, settings.max_query_characters
    if len(texts) > settings.max_queries:
        remedy = f"send at most {settings.max_queries} a request"
        raise Refused(413, "too_many_queries", f"{len(texts)} queries", remedy)
    cut = sum(len(text) > longest for text in texts)
    return _cut(texts, longest), cut


def _cut(texts: Sequence[str], longest: int) -> list[str]:
    """At most `longest` characters of each, as text that every tokenizer accepts."""
    return [text[:longest].encode("utf-8", "replace").decode() for text in texts]


def _topk(wanted: int | None, *, default: int, most: int) -> int:
    """The number of passages that a request gets. Raises Refused for more than the maximum."""
    if wanted and wanted > most:
        raise Refused(422, "topk_too_large", f"topk is {wanted}", f"ask for at most {most}")
    return min(wanted or default, most)


async def _unless_gone[T](request: Request, work: asyncio.Task[T]) -> T | None:
    """The result of `work`; None if the client disconnects first, and then `work` is cancelled."""

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
    on_ready: Callable[[], None] = lambda: None,
    on_failure: Callable[[], None] = lambda: None,
    opens: Opener | None = None,
) -> FastAPI:
    """The application for the settings' corpus and index, or for the result of `opens`.

    With `key`, clients must send it as a bearer token. `on_ready` is called when the index is loaded, `on_failure` if
    it can not be loaded.
    """
    metrics = Metrics()
    service = Service(settings, metrics)

    async def load() -> None:
        try:
            await service.load(opens or opener(settings, build=build))
            log.info("ready", **(service.manifest or {}))
        except Exception as error:
            log.error("the index can not be loaded", error=str(error))
            on_failure()
        else:
            on_ready()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(load())
        async with tools_at_mcp(app, settings, key) if settings.mcp else nullcontext():
            yield
        loading.cancel()
        await service.close()

    app = FastAPI(title="s3-agent retrieval server", lifespan=lifespan)
    app.add_middleware(Guard, key=key, max_body_bytes=settings.max_body_bytes, metrics=metrics)
    answer_errors(app)

    async def answered(request: Request, work: Coroutine[Any, Any, bytes]) -> Response:
        answer = await _unless_gone(request, asyncio.create_task(work))
        if answer is None:
            metrics.disconnected()
            return Response(status_code=CLIENT_GONE)
        return Response(answer, media_type="application/json")

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The server is alive; independent of the index."""
        return {"status": "ok"}

    @app.get("/readyz", response_model=Ready, responses={503: {"model": NotReady, "description": "Loading, or failed"}})
    async def readyz() -> dict[str, Any]:
        """The manifest of the loaded index; before that, 503 with the progress."""
        if service.manifest is None:
            message = service.failure or service.progress.stage or "the index is loading"
            after, progress = {"Retry-After": "1"}, service.progress.model_dump()
            raise Refused(503, "not_ready", message, "ask again", headers=after, progress=progress)
        return {"status": "ready", **service.manifest}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def show_metrics() -> Response:
        """Prometheus's text format."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.post(
        "/retrieve",
        response_model=RetrieveResponse,
        responses=RESPONSES,
        openapi_extra=_body(SearchRequest),
    )
    async def retrieve(request: Request) -> Response:
        """The best passages of each query, best first."""
        if service.manifest is None:
            await readyz()
        asked = await _asked(request, SearchRequest)
        queries, cut = _checked(settings, asked)
        topk = _topk(asked.wanted, default=settings.topk, most=service.max_topk)
        metrics.cut(cut)
        form = asked.form
        work = service.retrieve(queries, topk=topk, form=form, excluded=asked.excluded)
        found = await _unless_gone(request, asyncio.create_task(work))
        if found is None:
            metrics.disconnected()
            return Response(status_code=CLIENT_GONE)
        answer, refused = found
        counts = {CUT_HEADER: cut, REFUSED_HEADER: refused}
        headers = {name: str(count) for name, count in counts.items() if count}
        return Response(answer, media_type="application/json", headers=headers)

    @app.get("/documents/{id:path}", response_model=Document, responses=NOT_FOUND | RESPONSES)
    async def document(id: str) -> Response:
        """The passage with that id."""
        if service.manifest is None:
            await readyz()
        found = await service.document(id)
        if found is None:
            raise Refused(404, "unknown_document", f"no passage has the id {id!r}", "take an id from a search")
        return Response(as_json(_DOCUMENT, found), media_type="application/json")

    @app.post("/grep", response_model=GrepResponse, responses=RESPONSES, openapi_extra=_body(GrepRequest))
    async def grep(request: Request) -> Response:
        """The first passages whose `contents` match a regular expression, in the order of the corpus."""
        if service.manifest is None:
            await readyz()
        asked = await _asked(request, GrepRequest)
        if len(asked.pattern) > settings.max_query_characters:
            longest = settings.max_query_characters
            raise Refused(422, "bad_pattern", "the pattern is too long", f"send at most {longest} characters")
        topk = _topk(asked.topk, default=settings.topk, most=settings.max_topk)
        return await answered(request, service.grep(asked, topk=topk))

    @app.post(
        "/rerank",
        response_model=RerankResponse,
        responses=NOT_FOUND | RESPONSES,
        openapi_extra=_body(RerankRequest),
    )
    async def rerank(request: Request) -> Response:
        """The given documents of each query, best first, by the server's reranker: Search-R1's rerank server."""
        if service.manifest is None:
            await readyz()
        asked = await _asked(request, RerankRequest)
        if (given := sum(map(len, asked.documents))) > settings.max_queries or len(
            asked.queries
        ) > settings.max_queries:
            what, most = f"{len(asked.queries)} queries with {given} documents", settings.max_queries
            raise Refused(413, "too_many_documents", what, f"send at most {most} of each in a request")
        topk = _topk(asked.rerank_topk, default=settings.topk, most=settings.max_topk)
        asked.queries = _cut(asked.queries, settings.max_query_characters)
        return await answered(request, service.rerank(asked, topk=topk))

    return app
