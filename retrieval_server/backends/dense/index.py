"""Dense retrieval: an encoder for the queries and an engine over the passages' vectors."""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from retrieval_server.backends.base import Hits
from retrieval_server.backends.dense.settings import DenseSettings


class Engine(Protocol):
    """Searches vectors."""

    def search(self, queries: Any, *, topk: int) -> list[Hits]:
        """`queries`: float32 (queries, dimension). At most `topk` (row, score) each, best first."""
        ...


class QueryEncoder(Protocol):
    """Makes vectors of queries."""

    def queries(self, texts: Sequence[str]) -> Any:
        """float32 (texts, dimension)."""
        ...


class Dense:
    """A dense index."""

    ignores_whitespace: ClassVar[bool] = False  # a tokenizer may have tokens for white space

    def __init__(self, encoder: QueryEncoder, engine: Engine, settings: DenseSettings) -> None:
        self._encoder = encoder
        self._engine = engine
        self._longest = settings.encoder.longest()

    def search(self, queries: Sequence[str], *, topk: int) -> list[Hits]:
        """For each query at most `topk` (row, score), best first."""
        return self._engine.search(self._encoder.queries(queries), topk=topk)

    def cost(self, query: str) -> int:
        """Its approximate number of tokens, of four characters each."""
        return min(self._longest, 2 + len(query) // 4)
