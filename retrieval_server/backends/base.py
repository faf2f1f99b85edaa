"""The protocol of an opened index, as the server calls it."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar, Protocol, Self

from retrieval_server.schemas import Document

Hits = list[tuple[int, float]]


class Passages(Protocol):
    """The part of a corpus that the server uses; several threads read it concurrently."""

    def __len__(self) -> int: ...
    def __getitem__(self, row: int, /) -> Document: ...
    def row_of(self, name: str, /) -> int | None:
        """The row of the passage with that id."""
        ...


class WaitingBackend(Protocol):
    """A backend that waits for another service and computes nothing: each query is searched by itself, at once."""

    ignores_whitespace: ClassVar[bool]
    """As in `Backend`."""
    answers_change: bool
    """Whether a query may find something else each time: then no answer is used for another request."""

    async def find(self, query: str, *, topk: int) -> Hits:
        """At most `topk` (row, score), best first.

        Raises SearchRefused for what will be refused again, QueryError if the service refuses this query alone, and
        Unavailable if it does not answer.
        """
        ...

    async def close(self) -> None:
        """Stop, and give back what it holds."""
        ...


class Backend(Protocol):
    """An opened index over a corpus. Rows are the corpus's row numbers; scores are higher for better hits.

    For example, a backend that finds the passages that contain the query literally:

        class Grep:
            ignores_whitespace = False

            def __init__(self, texts):
                self._texts = texts

            def search(self, queries, *, topk):
                rows = range(len(self._texts))
                return [[(row, 1.0) for row in rows if query in self._texts[row]][:topk] for query in queries]

            def cost(self, query):
                return 1
    """

    ignores_whitespace: ClassVar[bool]
    """Whether white space around and between words does not change the results."""

    def search(self, queries: Sequence[str], *, topk: int) -> list[Hits]:
        """For each query at most `topk` (row, score), best first; an empty list when nothing matches. One thread."""
        ...

    def cost(self, query: str) -> int:
        """The query's weight in a batch, roughly in tokens; at least 1."""
        ...


class StageScore(float):
    """A score that keeps the scores of the stages that it was made from, by the stage's name."""

    stages: Mapping[str, float]

    def __new__(cls, value: float, stages: Mapping[str, float]) -> Self:
        score = super().__new__(cls, value)
        score.stages = stages
        return score


def stages_of(score: float, stage: str) -> Mapping[str, float]:
    """The scores of its stages; of a plain score, which comes from one stage, that score."""
    return score.stages if isinstance(score, StageScore) else {stage: score}


Observe = Callable[[str, float], None]
"""Called with the name of a stage and its seconds."""


class StagedBackend:
    """The base class of backends that may search in several stages.

    `parts`: other backends that it searches, by the name of their stage; empty if it has none.
    """

    most: int | None = None
    """The maximum of passages for a query; None: any number."""

    def __init__(self, parts: Mapping[str, Backend]) -> None:
        self._parts = parts
        self._observe: Observe = lambda stage, seconds: None

    def observe_with(self, observe: Observe) -> None:
        """Report the time of each stage of each search."""
        self._observe = observe
        for part in self._parts.values():
            if isinstance(part, StagedBackend):
                part.observe_with(observe)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Measures what runs inside as one stage, also if it fails."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._observe(stage, time.perf_counter() - begin)
