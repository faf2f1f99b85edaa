"""The protocol between the code that all engines share and the module of one engine."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from retrieval_server.backends.base import Hits
from retrieval_server.backends.engines.vocabulary import Vocabulary
from retrieval_server.corpus import Report


@dataclass(frozen=True)
class Shape:
    """What an index holds: its name in the engine, its passages, and the numbers of a vector (None: no vectors).

    `vocabulary` is given to engines that weigh terms by themselves (`EngineKind.weighs_terms`).
    """

    name: str
    passages: int
    dimension: int | None
    vocabulary: Vocabulary | None = None


@dataclass(frozen=True)
class Batch:
    """The passages from row `start` on: ids, vectors as float32 (passages, dimension), and the terms of each."""

    start: int
    ids: Sequence[str]
    vectors: Any | None
    terms: Sequence[Sequence[str]] | None

    @property
    def end(self) -> int:
        """The row after the last passage."""
        return self.start + len(self.ids)


class Store(ABC):
    """One index in an engine. Every method raises Unavailable while the engine is away, and RetrievalError otherwise.

    A store in memory, over vectors only:

        class Memory(Store):
            def prepare(self, *, fresh):
                there, self.held = not fresh and self.held is not None, {} if fresh else self.held or {}
                return there

            def put(self, batch):
                self.held |= {batch.start + at: row for at, row in enumerate(self.canonical(batch))}

            ...

    All methods may be called again after a failure: none may count a passage twice.
    """

    @abstractmethod
    def prepare(self, *, fresh: bool) -> bool:
        """Create the index in the engine if it is not there; return whether it was. `fresh` removes one first."""

    @abstractmethod
    def put(self, batch: Batch) -> None:
        """Write the passages, in place of those with the same rows. They are kept by the engine on return."""

    @abstractmethod
    def finish(self, report: Report) -> None:
        """Called when all passages are written: build what the search needs."""

    @abstractmethod
    def count(self) -> int:
        """The number of passages that the engine holds. Raises RetrievalError if it has no such index."""

    @abstractmethod
    def canonical(self, batch: Batch) -> list[bytes]:
        """For each passage the bytes that describe exactly what the engine keeps of it."""

    @abstractmethod
    def held(self, start: int, end: int) -> list[bytes]:
        """The same bytes, made from what the engine holds; passages that are missing are left out."""

    def dense(self, vectors: Any, topk: int) -> list[Hits]:
        """For each of the vectors, float32 (queries, dimension), at most `topk` hits by inner product."""
        raise NotImplementedError

    def lexical(self, queries: Sequence[Counter[str]], topk: int) -> list[Hits]:
        """For each query, given as terms with their number, at most `topk` hits with a score above 0."""
        raise NotImplementedError

    @abstractmethod
    def version(self) -> str:
        """The engine and its release, for the manifest."""

    @abstractmethod
    def close(self) -> None:
        """Close all connections."""
