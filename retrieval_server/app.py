"""The FastAPI application: it answers health checks at once and searches when the index is loaded."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from retrieval_server.backends.bm25 import Bm25
from retrieval_server.config import ServerSettings
from retrieval_server.corpus import Corpus
from retrieval_server.indexing import expected_manifest, open_index
from retrieval_server.schemas import ErrorBody, ErrorResponse, Hit, RetrieveRequest, RetrieveResponse

log = structlog.get_logger()


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str, remedy: str, *, retry_after: int | None = None) -> None:
        self.status = status
        self.body = ErrorResponse(error=ErrorBody(code=code, message=message, remedy=remedy))
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body.model_dump(), status_code=self.status, headers=self.headers)


class _BodyLimit:
    """Reads no more of a body than the limit, whatever its Content-Length says."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        messages: list[Message] = []
        size = 0
        while not messages or messages[-1].get("more_body"):
            messages.append(await receive())
            size += len(messages[-1].get("body", b""))
            if size > self._limit:
                refusal = _Refused(413, "body_too_large", "the body is too large", f"send at most {self._limit} bytes")
                return await refusal.response()(scope, receive, send)
        rest = iter(messages)

        async def replay() -> Message:
            return next(rest, None) or await receive()

        await self._app(scope, replay, send)


@dataclass
class _State:
    corpus: Corpus | None = None
    backend: Bm25 | None = None
    manifest: dict[str, Any] = field(default_factory=dict)
    failure: str = ""
    searching: asyncio.Lock = field(default_factory=asyncio.Lock)


def _search(state: _State, settings: ServerSettings, request: RetrieveRequest) -> list[list[Hit]]:
    assert state.backend is not None and state.corpus is not None
    topk = min(request.topk or settings.topk, settings.max_topk)
    found = state.backend.search(request.queries, topk=topk)
    return [[Hit(document=state.corpus[row], score=score) for row, score in hits] for hits in found]


def _check(settings: ServerSettings, request: RetrieveRequest) -> None:
    if len(request.queries) > settings.max_queries:
        raise _Refused(
            413, "too_many_queries", f"{len(request.queries)} queries", f"send at most {settings.max_queries}"
        )
    longest = max(map(len, request.queries))
    if longest > settings.max_query_characters:
        limit = settings.max_query_characters
        raise _Refused(413, "query_too_long", f"a query has {longest} characters", f"send at most {limit}")
    if request.topk and request.topk > settings.max_topk:
        raise _Refused(422, "topk_too_large", f"topk is {request.topk}", f"ask for at most {settings.max_topk}")


def create_app(
    settings: ServerSettings, *, build: bool = False, on_failure: Callable[[], None] | None = None
) -> FastAPI:
    """The application over one corpus and index. `on_failure` is called when the index can not be loaded."""
    state = _State()

    def load() -> None:
        corpus = Corpus(settings.corpus)
        state.backend = open_index(corpus, settings.index, settings.bm25, build=build)
        state.manifest = expected_manifest(corpus, settings.bm25)
        state.corpus = corpus

    async def load_in_background() -> None:
        try:
            await asyncio.to_thread(load)
            log.info("ready", passages=state.manifest["passages"])
        except Exception as error:
            state.failure = str(error)
            log.error("the index can not be loaded", error=str(error))
            if on_failure:
                on_failure()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(load_in_background())
        yield
        loading.cancel()

    app = FastAPI(title="s3-agent retrieval server", lifespan=lifespan)
    app.add_middleware(_BodyLimit, limit=settings.max_body_bytes)

    @app.exception_handler(_Refused)
    async def refused(_: Request, error: _Refused) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        return _Refused(422, "invalid_request", problems, 'send {"queries": ["…"], "topk": 3}').response()

    @app.exception_handler(HTTPException)
    async def refused_by_http(_: Request, error: HTTPException) -> JSONResponse:
        refusal = _Refused(error.status_code, "http_error", str(error.detail), "see /openapi.json")
        refusal.headers = dict(error.headers or {})
        return refusal.response()

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        log.error("a request failed", error=repr(error))
        return _Refused(500, "internal_error", type(error).__name__, "see the server's log").response()

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, Any]:
        if state.corpus is None:
            raise _Refused(503, "not_ready", state.failure or "the index is loading", "ask again", retry_after=1)
        return {"status": "ready", **state.manifest}

    @app.post("/retrieve", response_model=RetrieveResponse)
    async def retrieve(request: RetrieveRequest) -> dict[str, Any]:
        await readyz()
        _check(settings, request)
        async with state.searching:
            hits = await asyncio.to_thread(_search, state, settings, request)
        if request.return_scores:
            return {"result": hits}
        return {"result": [[hit.document for hit in row] for row in hits]}

    return app
