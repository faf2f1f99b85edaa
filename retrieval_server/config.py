"""The server's settings and limits."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class HttpSettings(BaseModel):
    """Where to listen and what clients may ask for. Each field is an option of the command line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=3000, ge=0, le=65535, description="port to listen on")
    topk: int = Field(default=3, ge=1, description="passages a query when the request names none")
    max_topk: int = Field(default=100, ge=1, description="passages a query at most")
    max_queries: int = Field(default=1024, ge=1, description="queries in a request at most")
    max_query_characters: int = Field(default=8192, ge=1, description="characters in a query at most")
    max_body_bytes: int = Field(default=8 << 20, ge=1, description="bytes in a request's body at most")
    max_queued: int = Field(default=4096, ge=1, description="queries that may wait for a search; others get 429")
    max_batch_queries: int = Field(default=512, ge=1, description="queries searched together at most; 1: no batching")
    max_batch_tokens: int = Field(default=16384, ge=1, description="tokens in a batch at most")
    cache_mb: float = Field(default=64.0, ge=0, description="memory for the cache of queries, in MB; 0: no cache")
    shutdown_s: float = Field(default=30.0, ge=0, description="seconds that accepted requests have after SIGTERM")


class Bm25Settings(BaseModel):
    """BM25 with Lucene's formula and English analysis (spec §7.3)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    k1: float = 0.9
    b: float = 0.4
    stemmer: str = "porter"
    stopwords: str = "english"


class ServerSettings(HttpSettings):
    """One server: its corpus, its index, its limits."""

    corpus: Path
    index: Path
    bm25: Bm25Settings = Bm25Settings()
