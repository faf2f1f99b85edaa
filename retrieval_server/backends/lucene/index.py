"""Searches an existing Lucene index with pyserini's LuceneSearcher, which needs Java.

The docid of a hit is the id of its passage. In Search-R1's corpora ids are row numbers; for any other corpus the ids
are read when the index is opened.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from retrieval_server.backends.base import Hits
from retrieval_server.backends.lucene.settings import LuceneSettings
from retrieval_server.backends.ordering import SPARE
from retrieval_server.corpus import Corpus, Report, silent
from retrieval_server.errors import RetrievalError

_PROBES = 100


class Lucene:
    """A Lucene index opened through pyserini."""

    ignores_whitespace: ClassVar[bool] = True

    def __init__(self, settings: LuceneSettings, corpus: Corpus, *, report: Report = silent) -> None:
        try:
            from pyserini.search.lucene import LuceneSearcher  # pyright: ignore[reportMissingImports]

            self._searcher: Any = LuceneSearcher(str(settings.path))
            self._searcher.set_bm25(settings.k1, settings.b)
        except Exception as cause:  # pyserini, pyjnius and the JVM each raise their own errors
            raise RetrievalError(
                f"the Lucene index {settings.path} can not be opened: {cause}",
                remedy="install pyserini and its Java (pip install pyserini), or use `kind: bm25`, which needs neither",
            ) from cause
        if self._searcher.num_docs != len(corpus):
            raise RetrievalError(
                f"the Lucene index {settings.path} holds {self._searcher.num_docs} passages, the corpus {len(corpus)}",
                remedy="give the corpus that it was built from",
            )
        self._corpus = corpus
        self._rows: dict[str, int] | None = None
        docids = [self._searcher.doc(number).docid() for number in range(0, len(corpus), 1 + len(corpus) // _PROBES)]
        if any(self._row_by_number(docid) is None for docid in docids):
            self._rows = {}
            for row, document in enumerate(corpus):
                if row % 10_000 == 0:
                    report("reading the corpus's ids", row, len(corpus))
                self._rows[document.id] = row
        for docid in docids:
            self._row(docid)

    def _row_by_number(self, docid: str) -> int | None:
        row = int(docid) if docid.isascii() and docid.isdecimal() else -1
        return row if 0 <= row < len(self._corpus) and self._corpus[row].id == docid else None

    def _row(self, docid: str) -> int:
        row = self._row_by_number(docid) if self._rows is None else self._rows.get(docid)
        if row is None:
            raise RetrievalError(
                f"the Lucene index returned the id {docid!r}, which no passage of {self._corpus.path} has",
                remedy="give the corpus that it was built from",
            )
        return row

    def cost(self, query: str) -> int:
        """Every query is one search."""
        return 1

    def search(self, queries: Sequence[str], *, topk: int) -> list[Hits]:
        """For each query at most `topk` (row, score), best first, ties by row."""
        return [self._search(query, topk) for query in queries]

    def _search(self, query: str, topk: int) -> Hits:
        fetched = topk + SPARE
        while True:
            hits = self._searcher.search(query, fetched)
            if len(hits) < fetched or hits[-1].score < hits[topk - 1].score:
                break
            fetched *= 4  # more passages than were fetched have the score of the last wanted one
        found = [(self._row(hit.docid), float(hit.score)) for hit in hits]
        return sorted(found, key=lambda hit: (-hit[1], hit[0]))[:topk]
