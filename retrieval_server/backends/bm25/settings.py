"""The settings of a BM25 index."""

from typing import Any, Literal

from pydantic import Field

from retrieval_server.index_kinds import IndexSettings


class Bm25Settings(IndexSettings, frozen=True):
    """BM25 with Lucene's formula and English analysis. `boolean`: AND, OR, NOT, quotes count (docs/originals.md#e1)."""

    kind: Literal["bm25"] = "bm25"
    k1: float = Field(default=0.9, ge=0)
    b: float = Field(default=0.4, ge=0, le=1)
    stemmer: str = "porter"
    stopwords: str = "english"
    boolean: bool = False

    def identity(self) -> dict[str, Any]:
        """The settings that an index is built with."""
        return self.model_dump(exclude={"kind", "boolean"})

    def answers(self) -> dict[str, Any]:
        """The settings that answers depend on. Boolean parsing is included only if it is on."""
        return self.identity() | ({"boolean": True} if self.boolean else {})
