"""The server's settings and limits."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class Bm25Settings(BaseModel):
    """BM25 with Lucene's formula and English analysis (spec §7.3)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    k1: float = 0.9
    b: float = 0.4
    stemmer: str = "porter"
    stopwords: str = "english"


class ServerSettings(BaseModel):
    """Where the corpus and the index are, where to listen, and what one request may ask for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: Path
    index: Path
    host: str = "127.0.0.1"
    port: int = Field(default=3000, ge=0, le=65535)
    topk: int = Field(default=3, ge=1)
    max_topk: int = Field(default=100, ge=1)
    max_queries: int = Field(default=1024, ge=1)
    max_query_characters: int = Field(default=8192, ge=1)
    max_body_bytes: int = Field(default=8 << 20, ge=1)
    bm25: Bm25Settings = Bm25Settings()
