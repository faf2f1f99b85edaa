"""Searches an engine: encodes or analyses the queries, orders equal scores, and fuses the lists of a hybrid search."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from retrieval_server.backends.base import Hits
from retrieval_server.backends.bm25.analysis import EnglishAnalyzer
from retrieval_server.backends.dense.index import QueryEncoder
from retrieval_server.backends.engines.settings import EngineSettings
from retrieval_server.backends.engines.store import Store
from retrieval_server.backends.fusion import FusingBackend
from retrieval_server.backends.ordering import fetch_ties, ordered
from retrieval_server.errors import QueryError, RetrievalError, Unavailable
from retrieval_server.services import patiently

MOST = 10_000  # hits fetched to see the end of a tie


class EngineBackend(FusingBackend):
    """An index in an engine, as the server searches it."""

    ignores_whitespace: ClassVar[bool] = False

    def __init__(
        self, store: Store, settings: EngineSettings, *, passages: int, encoder: QueryEncoder | None, most: int = MOST
    ) -> None:
        super().__init__({})
        self._store = store
        self._settings = settings
        self._passages = passages
        self._encoder = encoder
        self._analyzer: EnglishAnalyzer | None = None
        if settings.lexical:
            self._analyzer = EnglishAnalyzer(stemmer=settings.stemmer, stopwords=settings.stopwords)
        self._fetched = min(most, passages)
        self.most = settings.most(MOST)

    def cost(self, query: str) -> int:
        """Its approximate number of tokens, of four characters each."""
        longest = self._settings.encoder.longest() if self._settings.encoder else 1
        return min(longest, 2 + len(query) // 4)

    def search(self, queries: Sequence[str], *, topk: int) -> list[Hits]:
        """For each query at most `topk` (row, score), best first, ties by row. Raises Unavailable, QueryError."""
        match self._settings.search:
            case "dense":
                return self._dense(queries, topk)
            case "bm25":
                return self._lexical(queries, topk)
            case "hybrid":
                settings, depth = self._settings, self._settings.fused
                return self.fused(
                    {"dense": lambda: self._dense(queries, depth), "bm25": lambda: self._lexical(queries, depth)},
                    weights={"dense": settings.dense_weight, "bm25": settings.bm25_weight},
                    constant=settings.rank_constant,
                    topk=topk,
                )

    def _dense(self, queries: Sequence[str], topk: int) -> list[Hits]:
        assert self._encoder is not None
        vectors = self._encoder.queries(queries)
        return self._found(lambda chosen, count: self._store.dense(vectors[chosen], count), len(queries), topk)

    def _lexical(self, queries: Sequence[str], topk: int) -> list[Hits]:
        assert self._analyzer is not None
        asked = [Counter(self._analyzer.terms(query)) for query in queries]
        wanted = [at for at, terms in enumerate(asked) if terms]

        def fetch(chosen: Any, count: int) -> list[Hits]:
            return self._store.lexical([asked[wanted[at]] for at in chosen], count)

        found: list[Hits] = [[] for _ in queries]
        for at, hits in zip(wanted, self._found(fetch, len(wanted), topk), strict=True):
            found[at] = hits
        return found

    def _found(self, fetch: Callable[[Any, int], list[Hits]], queries: int, topk: int) -> list[Hits]:
        """Hits in order, with all that tie at the cut considered. `fetch` gets numbers of queries and a count."""
        import numpy as np

        def arrays(chosen: Any, count: int) -> tuple[Any, Any]:
            lists = self._asked(lambda: fetch(chosen, count))
            scores = np.full((len(lists), count), -np.inf)
            rows = np.full((len(lists), count), -1)
            for at, hits in enumerate(lists):
                for place, (row, score) in enumerate(hits[:count]):
                    scores[at, place], rows[at, place] = score, row
            return scores, rows

        if not queries:
            return []
        found = fetch_ties(arrays, np.arange(queries), topk, most=self._fetched, near=0.0)
        return [ordered(rows, scores, topk) for rows, scores in found]

    def _asked(self, fetch: Callable[[], list[Hits]]) -> list[Hits]:
        try:
            lists = patiently(fetch, patience_s=self._settings.patience_s)
        except (Unavailable, QueryError):
            raise
        except RetrievalError as cause:  # no query of a batch is at fault
            raise Unavailable(str(cause)) from cause
        rows = [row for hits in lists for row, _ in hits]
        if rows and not 0 <= min(rows) <= max(rows) < self._passages:
            raise Unavailable(
                f"the engine returned a row that the corpus does not have: {max(rows, key=abs)} of {self._passages}",
                remedy="build the index again, and let nothing else write into its place",
            )
        return lists
