"""An existing Lucene index, searched by pyserini's LuceneSearcher, for those who have one and Java (spec §7.3).

A hit's docid is taken for its row in the corpus: Search-R1's indexes are made of passages whose ids are row numbers.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from retrieval_server.backends.base import Hits
from retrieval_server.config import LuceneSettings
from retrieval_server.errors import RetrievalError


class Lucene:
    """A Lucene index opened through pyserini."""

    ignores_whitespace: ClassVar[bool] = True

    def __init__(self, settings: LuceneSettings, *, passages: int) -> None:
        try:
            from pyserini.search.lucene import LuceneSearcher  # pyright: ignore[reportMissingImports]

            self._searcher: Any = LuceneSearcher(str(settings.path))
            self._searcher.set_bm25(settings.k1, settings.b)
        except Exception as cause:  # pyserini, pyjnius and the JVM each have their own
            raise RetrievalError(
                f"the Lucene index {settings.path} can not be opened: {cause}",
                remedy="install pyserini and its Java (pip install pyserini), or use `kind: bm25`, which needs neither",
            ) from cause
        if self._searcher.num_docs != passages:
            raise RetrievalError(
                f"the Lucene index {settings.path} holds {self._searcher.num_docs} passages, the corpus {passages}",
                remedy="give the corpus that it was made of",
            )

    def cost(self, query: str) -> int:
        """Every query is one search."""
        return 1

    def search(self, queries: Sequence[str], *, topk: int) -> list[Hits]:
        """For each query at most `topk` (row, score), best first."""
        return [[(int(hit.docid), float(hit.score)) for hit in self._searcher.search(query, topk)] for query in queries]
