"""The settings of the server, including its limits."""

from pathlib import Path
from typing import Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from retrieval_server.errors import RetrievalError
from retrieval_server.index_kinds import INDEX_KINDS, AnyIndexSettings, IndexSettings, kind_of
from retrieval_server.rerankers import RERANKERS, AnyRerankSettings, RerankSettings
from retrieval_server.schemas import TEXT_CHARACTERS


class HttpSettings(BaseModel):
    """The address and the limits for clients. Each field is an option of the command line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=3000, ge=0, le=65535, description="port to listen on")
    topk: int = Field(default=3, ge=1, description="passages per query if the request does not set it")
    # The limits are above what the original clients send: Search-R1's sends 2,560 queries in one request and never
    # retries.
    max_topk: int = Field(default=1000, ge=1, description="passages a query at most")
    max_queries: int = Field(default=16384, ge=1, description="maximum of queries in a request")
    max_query_characters: int = Field(default=8192, ge=1, description="maximum of characters read of a query")
    max_body_bytes: int = Field(default=64 << 20, ge=1, description="maximum of bytes in a request's body")
    max_queued: int = Field(default=65536, ge=1, description="maximum of waiting queries; others get 429")
    max_batch_queries: int = Field(default=512, ge=1, description="queries searched together at most; 1: no batching")
    max_batch_tokens: int = Field(default=16384, ge=1, description="tokens in a batch at most")
    grep_s: float = Field(default=5.0, gt=0, description="seconds that one POST /grep searches at most")
    max_waiting: int = Field(default=8, ge=1, description="maximum of waiting POST /grep, or /rerank; others get 429")
    mcp: bool = Field(default=False, description="offer tools for assistants at /mcp (Model Context Protocol)")
    mcp_characters: int = Field(
        default=TEXT_CHARACTERS, ge=1, description="characters of a found passage's text that a tool returns"
    )
    cache_mb: float = Field(default=64.0, ge=0, description="memory for the cache of queries, in MB; 0: no cache")
    request_s: float = Field(default=30.0, gt=0, description="seconds that a request may take to arrive")
    shutdown_s: float = Field(default=30.0, ge=0, description="seconds after SIGTERM to finish accepted requests")


rerank_settings: TypeAdapter[RerankSettings] = TypeAdapter(AnyRerankSettings)
index_settings: TypeAdapter[IndexSettings] = TypeAdapter(AnyIndexSettings)


def read_index_settings(path: Path) -> IndexSettings:
    """The settings in a YAML or JSON file: `kind` and the fields of that kind. Raises RetrievalError."""
    try:
        return index_settings.validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError, ValidationError) as cause:
        kinds = ", ".join(INDEX_KINDS)
        raise RetrievalError(
            f"{path} can not be used: {cause}", remedy=f"give `kind` ({kinds}) and its fields"
        ) from cause


def read_rerank_settings(path: Path) -> RerankSettings:
    """The settings in a YAML or JSON file: `style` and the fields of that style. Raises RetrievalError."""
    try:
        return rerank_settings.validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError, ValidationError) as cause:
        styles = ", ".join(RERANKERS)
        raise RetrievalError(
            f"{path} can not be used: {cause}", remedy=f"give `style` ({styles}) and its fields"
        ) from cause


def check_candidates(index: IndexSettings, rerank: RerankSettings) -> None:
    """Raise RetrievalError if the index can not return as many passages as the reranker scores."""
    try:
        index.check_topk(rerank.candidates)
    except ValueError as cause:
        raise RetrievalError(
            f"`rerank.candidates`: {cause}", remedy="or lower `candidates` in the reranker's settings"
        ) from cause


class ServerSettings(HttpSettings):
    """One server: its corpus, index, reranker and limits. Without `backend`, the index's manifest gives its settings.

    `corpus` is None for a kind that searches none, and only then.
    """

    corpus: Path | None = None
    index: Path
    backend: AnyIndexSettings | None = None
    rerank: AnyRerankSettings | None = None

    @model_validator(mode="after")
    def _corpus_if_searched(self) -> Self:
        searched = self.backend is None or kind_of(self.backend).searches_corpus
        if searched and self.corpus is None:
            raise ValueError("--corpus is missing: give the JSONL file that the index is over")
        if not searched and self.corpus is not None:
            raise ValueError("--corpus: an index of this kind searches no corpus, leave it out")
        if not searched and self.rerank is not None:
            raise ValueError("--rerank: an index of this kind searches no corpus, and its passages are not reranked")
        return self

    @model_validator(mode="after")
    def _enough_candidates(self) -> Self:
        if self.backend is not None:
            self.backend.check_topk(self.topk)
        if self.rerank is not None:
            self.rerank.check_topk(self.topk)
        if self.backend is not None and self.rerank is not None:
            try:
                check_candidates(self.backend, self.rerank)
            except RetrievalError as cause:
                raise ValueError(str(cause)) from cause
        return self
