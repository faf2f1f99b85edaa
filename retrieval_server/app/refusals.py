"""Returns every error in one JSON form with a fitting status: what is wrong, and what to do about it."""

import math
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from retrieval_server.batcher import Away, BadQuery, Overloaded, SearchFailed
from retrieval_server.errors import SearchRefused
from retrieval_server.schemas import ErrorBody, ErrorResponse

log = structlog.get_logger()

AWAY_RETRY_AFTER_S = 5
EXAMPLE = 'send {"queries": ["…"], "topk": 3, "return_scores": true} as application/json'
# The answers of all routes that search other than 200, for the OpenAPI document.
RESPONSES: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorResponse, "description": "No key, or a wrong one"},
    402: {"model": ErrorResponse, "description": "The budget of paid web searches is spent"},
    403: {
        "model": ErrorResponse,
        "description": "The provider of web search, or the reranker's service, refused the search",
    },
    404: {"model": ErrorResponse, "description": "No recorded answer to a query of a replay"},
    413: {"model": ErrorResponse, "description": "More than one request may ask for"},
    422: {"model": ErrorResponse, "description": "Not a request, or a query that can not be searched for"},
    429: {"model": ErrorResponse, "description": "The queue is full; see Retry-After"},
    500: {"model": ErrorResponse, "description": "The search failed"},
    503: {"model": ErrorResponse, "description": "The index is loading, or its engine is away; see Retry-After"},
}

NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": ErrorResponse, "description": "There is none"}}


class Refused(Exception):
    """An error answer instead of the requested one."""

    def __init__(
        self, status: int, code: str, message: str, remedy: str, *, headers: dict[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = ErrorResponse(error=ErrorBody(code=code, message=message, remedy=remedy)).model_dump() | more
        self.headers = headers

    def response(self) -> JSONResponse:
        """The answer as an ASGI application."""
        return JSONResponse(self.body, status_code=self.status, headers=self.headers)


def invalid(problems: str) -> Refused:
    """The body is not a valid request."""
    # A request can hold half a surrogate pair, and the framework's message may quote it.
    return Refused(422, "invalid_request", problems.encode("utf-8", "replace").decode(), EXAMPLE)


async def _refused(_: Request, error: Exception) -> JSONResponse:
    match error:
        case Refused():
            return error.response()
        case Overloaded():
            after = {"Retry-After": str(error.retry_after_s)}
            return Refused(429, "overloaded", str(error), "try again after Retry-After", headers=after).response()
        case RequestValidationError():
            problems = (": ".join(filter(None, (".".join(map(str, at["loc"])), at["msg"]))) for at in error.errors())
            return invalid("; ".join(problems)).response()
        case HTTPException(status_code=400):
            return invalid(str(error.detail)).response()
        case HTTPException():
            refusal = Refused(error.status_code, "http_error", str(error.detail), "see /openapi.json")
            refusal.headers = dict(error.headers or {})
            return refusal.response()
        case SearchRefused():
            return Refused(error.status, error.code, error.message, error.remedy).response()
        case BadQuery():
            remedy = "change the query; in a request with others only its own list is empty"
            return Refused(422, "bad_query", str(error).encode("utf-8", "replace").decode(), remedy).response()
        case Away():
            after = {"Retry-After": str(math.ceil(error.retry_after_s or AWAY_RETRY_AFTER_S))}
            remedy = "try again after Retry-After; see the server's log"
            return Refused(503, "away", str(error), remedy, headers=after).response()
        case SearchFailed():
            return Refused(500, "search_failed", str(error), "see the server's log").response()
    log.error("a request failed", error=repr(error))
    return Refused(500, "internal_error", type(error).__name__, "see the server's log").response()


def answer_errors(app: FastAPI) -> None:
    """Install this form for every exception that the application can raise."""
    ours = (Refused, Overloaded, SearchRefused, BadQuery, SearchFailed)
    for kind in (*ours, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _refused)
