"""The settings of a BM25 index."""

from typing import Any, Literal

from pydantic import Field

from retrieval_server.index_kinds import IndexSettings


class Bm25Settings(IndexSettings, frozen=True):
    """BM25 with Lucene's formula and English analysis. `boolean`: AND, OR, NOT, quotes count (docs/originals.md#e1).

    `engine` names the form of the index; without it, the number of passages decides when the index is built.
    """

    kind: Literal["bm25"] = "bm25"
    k1: float = Field(default=0.9, ge=0, allow_inf_nan=False)
    b: float = Field(default=0.4, ge=0, le=1)
    stemmer: str = "porter"
    stopwords: str = "english"
    boolean: bool = False
    engine: Literal["bm25s", "block_max"] | None = None

    def identity(self) -> dict[str, Any]:
        """The settings that an index is built with."""
        return self.model_dump(exclude={"kind", "boolean"} | ({"engine"} if self.engine is None else set()))

    def answers(self) -> dict[str, Any]:
        """The settings that answers depend on: all engines give the same, and Boolean parsing is included if on."""
        return self.model_dump(exclude={"kind", "engine"} | (set() if self.boolean else {"boolean"}))
