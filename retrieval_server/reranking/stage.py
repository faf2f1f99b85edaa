"""An index whose best passages are scored again by a reranker.

The number of candidates is fixed, so the answer for `topk` 1 is the first of that for 3. If the reranker fails, the
search fails: an answer in the index's own order would look the same, and be another result.
"""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import batched
from typing import Any, ClassVar, Protocol

from retrieval_server.backends.base import Backend, Hits, StagedBackend, StageScore, stages_of
from retrieval_server.errors import RetrievalError
from retrieval_server.rerankers import RERANKERS, Reranker, RerankSettings
from retrieval_server.schemas import Document

STAGE = "rerank"
PIECE = 64  # documents of a client that are scored at a time, so that searches need not wait for all of them


class Passages(Protocol):
    """Passages by row."""

    def __getitem__(self, row: int, /) -> Document: ...


class Reranked(StagedBackend):
    """A backend with a reranker behind it."""

    ignores_whitespace: ClassVar[bool] = False  # a tokenizer may have tokens for white space

    def __init__(
        self, backend: Backend, reranker: Reranker, passages: Passages, settings: RerankSettings, *, name: str
    ) -> None:
        """`name` is the stage of `backend`."""
        super().__init__({name: backend})
        self._backend, self._name = backend, name
        self._reranker, self._passages, self._settings = reranker, passages, settings
        self._one_at_a_time, self._next = threading.Lock(), threading.Lock()
        self.most = min(settings.candidates, getattr(backend, "most", None) or settings.candidates)

    def cost(self, query: str) -> int:
        """That of the index: the reranker makes batches of its own."""
        return self._backend.cost(query)

    def search(self, queries: Sequence[str], *, topk: int) -> list[Hits]:
        """At most `candidates` hits for each query; equal scores stay in the order of the index."""
        with self.timed(self._name):
            found = self._backend.search(queries, topk=self._settings.candidates)
        texts = [[self._settings.passage_text(self._passages[row]) for row, _ in hits] for hits in found]
        asked = [(self._settings.query_text(query), own) for query, own in zip(queries, texts, strict=True)]
        with self.timed(STAGE):
            scores = self._scores(asked)
        return [self._ordered(hits, own)[:topk] for hits, own in zip(found, scores, strict=True)]

    def scores(
        self, asked: Sequence[tuple[str, Sequence[str]]], *, stopped: Callable[[], bool] = lambda: False
    ) -> list[list[float]]:
        """The reranker's scores of a client's own documents for a query, which it reads as the settings' `query`
        describes. Several threads may ask, and searches go between.

        Raises RetrievalError if the reranker fails, or once `stopped()`.
        """
        found: list[list[float]] = []
        for query, texts in ((self._settings.query_text(query), texts) for query, texts in asked):
            scored: list[float] = []
            for some in batched(texts, PIECE):
                if stopped():
                    raise RetrievalError("nobody waits for these scores any more")
                scored += self._scores([(query, some)])[0]
            found.append(scored)
        return found

    def _scores(self, asked: Sequence[tuple[str, Sequence[str]]]) -> list[list[float]]:
        with self._turn():
            scores = self._reranker.scores(asked)
        if not all(math.isfinite(score) for own in scores for score in own):
            raise RetrievalError(
                f"the reranker {self._settings.style} gave a score that is no finite number",
                remedy="check the model; one in half precision may need float32",
            )
        return scores

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self._next:  # whoever waits comes before a thread that has just had its turn
            self._one_at_a_time.acquire()
        try:
            yield
        finally:
            self._one_at_a_time.release()

    def _ordered(self, hits: Hits, scores: Sequence[float]) -> Hits:
        again: list[tuple[int, float]] = [
            (row, StageScore(score, {**stages_of(first, self._name), STAGE: score}))
            for (row, first), score in zip(hits, scores, strict=True)
        ]
        return sorted(again, key=lambda hit: -hit[1])


def reranked(
    backend: Backend, settings: RerankSettings, passages: Passages, manifest: dict[str, Any]
) -> tuple[Backend, dict[str, Any]]:
    """The backend behind the reranker of `settings`, and the manifest with its settings. Raises RetrievalError."""
    reranker = RERANKERS[settings.style].load(settings)
    described = {**manifest, "rerank": settings.answers()}
    return Reranked(backend, reranker, passages, settings, name=manifest["backend"]), described
