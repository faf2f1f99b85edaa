"""The wire contract of `POST /retrieve` (docs/retrieval.md). Clients may import this module: it needs only pydantic."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema

KEY_VARIABLE = "RETRIEVAL_SERVER_KEY"
"""The environment variable with the key that a server requires and a client sends."""


CUT_HEADER = "X-Queries-Cut"
"""The response header with the number of queries that were cut to the server's maximum length."""

REFUSED_HEADER = "X-Queries-Refused"
"""The response header with the number of queries that could not be searched; their lists are empty."""


class RetrieveRequest(BaseModel):
    """The request of our client: the queries. `topk` null or 0 means the server's default."""

    queries: list[str]
    topk: int | None = Field(default=None, ge=0)
    return_scores: bool = False


class SearchRequest(BaseModel):
    """The request that the server accepts: `queries`, or `query` (one text or a list), depending on the client.

    `topk` or `top_k` null or 0 means the server's default.
    """

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={
            "oneOf": [{"required": ["queries"]}, {"required": ["query"]}],
            "not": {"required": ["topk", "top_k"]},
        },
    )

    queries: list[str] | SkipJsonSchema[None] = None
    query: str | list[str] | SkipJsonSchema[None] = None
    topk: int | None = Field(default=None, ge=0)
    top_k: int | None = Field(default=None, ge=0)
    return_scores: bool | None = None

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if (self.queries is None) == (self.query is None):
            raise ValueError("give either `queries` or `query`")
        if self.topk and self.top_k and self.topk != self.top_k:
            raise ValueError("`topk` and `top_k` differ: give one of them")
        return self

    @property
    def texts(self) -> list[str]:
        """The queries."""
        if self.queries is not None:
            return self.queries
        return [self.query] if isinstance(self.query, str) else self.query or []

    @property
    def wanted(self) -> int | None:
        """Passages per query; None: the server's default."""
        return self.topk or self.top_k or None

    @property
    def flat(self) -> bool:
        """Whether the client expects one flat list: BrowseComp-Plus's sends one `query` without `return_scores`.

        SkyRL's sends one `query` too, but always with `return_scores`, and expects a list for each query.
        """
        return isinstance(self.query, str) and self.return_scores is None and self.top_k is None


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


class FlatHit(BaseModel):
    """A found passage in the flat form."""

    document: Document
    docid: str


class RetrieveResponse(BaseModel):
    """One list per query, best first; documents without scores unless scores were requested. One flat list for a
    `query` that is one text, without `return_scores` or `top_k`.
    """

    result: list[list[Hit]] | list[list[Document]] | list[FlatHit]


class ErrorBody(BaseModel):
    """What is wrong, and what to do about it."""

    code: str
    message: str
    remedy: str = ""


class ErrorResponse(BaseModel):
    """The form of every error."""

    error: ErrorBody


class Progress(BaseModel):
    """The progress of loading. `total` 0: unknown."""

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
