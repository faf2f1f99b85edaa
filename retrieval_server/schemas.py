"""The wire contract of `POST /retrieve` (spec §7.1). Clients may import this module: it needs pydantic alone."""

from pydantic import BaseModel, ConfigDict, Field

KEY_VARIABLE = "RETRIEVAL_SERVER_KEY"
"""The environment variable with the key that a server asks for and a client sends."""


class RetrieveRequest(BaseModel):
    """Queries to search for. `topk` null or 0 means the server's default."""

    model_config = ConfigDict(extra="ignore")

    queries: list[str] = Field(min_length=1)
    topk: int | None = Field(default=None, ge=0)
    return_scores: bool = False


class Document(BaseModel):
    """One passage, always with all four fields. `contents` is the title line, a newline and the text."""

    id: str
    title: str
    text: str
    contents: str


class Hit(BaseModel):
    """One found passage with its score, higher is better."""

    document: Document
    score: float


class RetrieveResponse(BaseModel):
    """One list per query, best first; bare documents when scores were not asked for."""

    result: list[list[Hit]] | list[list[Document]]


class ErrorBody(BaseModel):
    """What is wrong and what to do about it."""

    code: str
    message: str
    remedy: str = ""


class ErrorResponse(BaseModel):
    """The one shape of every error."""

    error: ErrorBody


class Progress(BaseModel):
    """How far the loading is. `total` 0: not known."""

    stage: str = ""
    done: int = 0
    total: int = 0


class NotReady(ErrorResponse):
    """`GET /readyz` while the server loads, with status 503."""

    progress: Progress


class Ready(BaseModel):
    """`GET /readyz`: the index's manifest."""

    model_config = ConfigDict(extra="allow")

    status: str = "ready"
