"""What all engines of BM25 share: terms of a query, Boolean queries, and the search that adds up every posting."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from retrieval_server.backends.base import Hits
from retrieval_server.backends.bm25.analysis import EnglishAnalyzer
from retrieval_server.backends.bm25.boolean import parse
from retrieval_server.backends.bm25.settings import Bm25Settings
from retrieval_server.backends.ordering import ordered


class Bm25Backend(ABC):
    """An opened BM25 index of any engine. All give the same scores."""

    ignores_whitespace: ClassVar[bool] = True

    def __init__(self, settings: Bm25Settings, passages: int) -> None:
        self._settings, self._passages = settings, passages
        self._analyzer = EnglishAnalyzer(stemmer=settings.stemmer, stopwords=settings.stopwords)

    @abstractmethod
    def _postings(self, term: str) -> tuple[Any, Any]:
        """The rows that have a term, ascending, and what it adds to the score of each; two numpy arrays."""

    def terms(self, query: str) -> list[str]:
        """The terms of a query, as often as they occur in it."""
        return self._analyzer.terms(query)

    def cost(self, query: str) -> int:
        """Every query is one search."""
        return 1

    def search(self, queries: Sequence[str], *, topk: int) -> list[Hits]:
        """For each query at most `topk` (row, score), best first, ties by row; only passages that share a term."""
        return [self._add_up(query, topk) for query in queries]

    def _add_up(self, query: str, topk: int) -> Hits:
        import numpy as np

        scores = np.zeros(self._passages, dtype=np.float32)
        clause = parse(query, self.terms) if self._settings.boolean else None
        for term in self.terms(query) if clause is None else clause.positive():
            rows, weights = self._postings(term)
            scores[rows] += weights
        if clause is not None:
            scores[~clause.matches(self._mask)] = 0.0
        if topk < self._passages:
            least = np.partition(scores, self._passages - topk)[self._passages - topk]
            found = np.flatnonzero((scores >= least) & (scores > 0))
        else:
            found = np.flatnonzero(scores > 0)
        return ordered(found, scores[found], topk)

    def _mask(self, term: str) -> Any:
        import numpy as np

        mask = np.zeros(self._passages, dtype=bool)
        mask[self._postings(term)[0]] = True
        return mask
