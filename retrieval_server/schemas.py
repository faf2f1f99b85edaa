"""The wire contract of the server (docs/retrieval.md). Clients may import this module: it needs only pydantic."""

import json
from itertools import combinations
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator
from pydantic.json_schema import SkipJsonSchema

KEY_VARIABLE = "RETRIEVAL_SERVER_KEY"
"""The environment variable with the key that a server requires and a client sends."""


TEXT_CHARACTERS = 4000
"""Characters of a found passage's text that tools for assistants return, unless told otherwise."""

CUT_HEADER = "X-Queries-Cut"
"""The response header with the number of queries that were cut to the server's maximum length."""

REFUSED_HEADER = "X-Queries-Refused"
"""The response header with the number of queries that could not be searched; their lists are empty."""


def as_json(form: TypeAdapter[Any], value: Any) -> bytes:
    """The value as JSON in UTF-8, with half a surrogate pair as a question mark."""
    try:
        return form.dump_json(value)
    except ValueError:  # a corpus of ours holds no half pair, other passages may
        return json.dumps(form.dump_python(value, mode="python"), ensure_ascii=False).encode("utf-8", "replace")


class RetrieveRequest(BaseModel):
    """The request of our client: the queries. `topk` null or 0 means the server's default."""

    queries: list[str]
    topk: int | None = Field(default=None, ge=0)
    return_scores: bool = False


class SearchRequest(BaseModel):
    """The request that the server accepts: `queries`, or `query` (one text or a list), depending on the client.

    `topk`, `top_k` or `topk_rerank` null or 0 means the server's default. `return_stages` asks for the score of each
    stage (an index of several, a reranker) beside each hit's own. `exclude` holds ids that no list shall contain: one
    list for all queries, or one for each.
    """

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={
            "oneOf": [{"required": ["queries"]}, {"required": ["query"]}],
            "not": {"anyOf": [{"required": list(pair)} for pair in combinations(("topk", "top_k", "topk_rerank"), 2)]},
        },
    )

    queries: list[str] | SkipJsonSchema[None] = None
    query: str | list[str] | SkipJsonSchema[None] = None
    topk: int | None = Field(default=None, ge=0)
    top_k: int | None = Field(default=None, ge=0)
    topk_rerank: int | None = Field(default=None, ge=0)
    return_scores: bool | None = None
    return_stages: bool = False
    exclude: list[str] | list[list[str]] = Field(default_factory=list)

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if (self.queries is None) == (self.query is None):
            raise ValueError("give either `queries` or `query`")
        if len({given for given in (self.topk, self.top_k, self.topk_rerank) if given}) > 1:
            raise ValueError("`topk`, `top_k` and `topk_rerank` differ: give one of them")
        if self.exclude and isinstance(self.exclude[0], list) and len(self.exclude) != len(self.texts):
            raise ValueError("`exclude` has another number of lists than there are queries")
        return self

    @property
    def texts(self) -> list[str]:
        """The queries."""
        if self.queries is not None:
            return self.queries
        return [self.query] if isinstance(self.query, str) else self.query or []

    @property
    def excluded(self) -> list[frozenset[str]]:
        """The ids that the list of each query shall not contain."""
        for_all = frozenset(name for name in self.exclude if isinstance(name, str))
        each = [frozenset(names) for names in self.exclude if isinstance(names, list)]
        return each or [for_all] * len(self.texts)

    @property
    def wanted(self) -> int | None:
        """Passages per query; None: the server's default."""
        return self.topk or self.top_k or self.topk_rerank or None

    @property
    def form(self) -> Literal["scored", "staged", "bare", "flat"]:
        """The shape of the answer. One flat list for BrowseComp-Plus's client: it sends one `query` and nothing else.

        SkyRL's sends one `query` too, but always with `return_scores`, and expects a list for each query.
        """
        if self.return_stages:
            return "staged"
        if isinstance(self.query, str) and self.return_scores is None and self.top_k is None:
            return "flat"
        return "scored" if self.return_scores else "bare"


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


class StagedHit(Hit):
    """A found passage with the score of each stage; the last stage's is its score. A stage that did not find it has
    none.
    """

    stages: dict[str, float]


class FlatHit(BaseModel):
    """A found passage in the flat form."""

    document: Document
    docid: str


class RetrieveResponse(BaseModel):
    """One list per query, best first; documents without scores unless scores were requested. One flat list for a
    `query` that is one text, without `return_scores` or `top_k`.
    """

    result: list[list[StagedHit]] | list[list[Hit]] | list[list[Document]] | list[FlatHit]


class GrepRequest(BaseModel):
    """A regular expression in RE2's syntax, searched in the `contents` of passages from row `start` on.

    `topk` null or 0 means the server's default. No passage with an id in `exclude` is returned.
    """

    model_config = ConfigDict(extra="ignore")

    pattern: str = Field(min_length=1)
    ignore_case: bool = False
    topk: int | None = Field(default=None, ge=0)
    start: int = Field(default=0, ge=0)
    exclude: list[str] = Field(default_factory=list)


class GrepHit(BaseModel):
    """A passage that matches, and where in its `contents` the first match starts and ends, in characters."""

    document: Document
    start: int
    end: int


class GrepResponse(BaseModel):
    """The first passages that match, in the order of the corpus.

    `next` is the row to continue from, as `start`, if the limit of passages or of time ended the search; null after the
    last passage. `read`: the number of passages that were searched.
    """

    result: list[GrepHit]
    read: int
    next: int | None


class Contents(BaseModel):
    """A document to rerank: its title line, a newline and the text."""

    contents: str


class ContainedDocument(BaseModel):
    """A document as `POST /retrieve` gives it with its score."""

    document: Contents


class RerankRequest(BaseModel):
    """The request of Search-R1's rerank server: for each query the documents to put in order.

    `rerank_topk` null or 0 means the server's default.
    """

    model_config = ConfigDict(extra="ignore")

    queries: list[str]
    documents: list[list[ContainedDocument | Contents]]
    rerank_topk: int | None = Field(default=None, ge=0)
    return_scores: bool = False

    @model_validator(mode="after")
    def _documents_of_each(self) -> Self:
        if len(self.queries) != len(self.documents):
            raise ValueError("`documents` has another number of lists than there are queries")
        return self

    @property
    def contents(self) -> list[list[str]]:
        """The texts of the documents of each query."""
        return [
            [one.contents if isinstance(one, Contents) else one.document.contents for one in own]
            for own in self.documents
        ]


class RerankedText(BaseModel):
    """A document as the reranker reads it, `(Title: …) text`, with its score."""

    document: str
    score: float


class RerankResponse(BaseModel):
    """One list per query, best first; texts without scores unless scores were requested."""

    result: list[list[RerankedText] | list[str]]


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
