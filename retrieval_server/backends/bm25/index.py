"""The engine bm25s: BM25 without Java, with Lucene's formula over Lucene's English analysis, memory-mapped.

bm25s keeps the score of every (passage, term) in one sparse matrix; its files are the index. Our own code makes the
terms and selects the best rows: by score, then by row, without sorting the corpus.
"""

from array import array
from pathlib import Path
from typing import Any, Self

from retrieval_server.backends.bm25.analysis import EnglishAnalyzer
from retrieval_server.backends.bm25.searching import Bm25Backend
from retrieval_server.backends.bm25.settings import Bm25Settings
from retrieval_server.corpus import Corpus, Report, silent
from retrieval_server.errors import RetrievalError

_STEP = 2000


class Bm25(Bm25Backend):
    """A BM25 index of bm25s."""

    def __init__(self, engine: Any, settings: Bm25Settings) -> None:
        super().__init__(settings, int(engine.scores["num_docs"]))
        self._engine = engine
        self._vocabulary: dict[str, int] = engine.vocab_dict
        self._data, self._rows, self._starts = (engine.scores[name] for name in ("data", "indices", "indptr"))

    @classmethod
    def build(cls, corpus: Corpus, settings: Bm25Settings, *, report: Report = silent) -> Self:
        """Index every passage's contents. Raises RetrievalError if they hold no term."""
        import bm25s

        analyzer = EnglishAnalyzer(stemmer=settings.stemmer, stopwords=settings.stopwords)
        vocabulary: dict[str, int] = {}
        documents: list[Any] = []
        for row, document in enumerate(corpus):
            if row % _STEP == 0:
                report("reading passages", row, len(corpus))
            terms = analyzer.terms(document.contents)
            documents.append(array("i", (vocabulary.setdefault(term, len(vocabulary)) for term in terms)))
        if not vocabulary:
            raise RetrievalError("the corpus has no word to search for", remedy="give passages with text in `contents`")
        report("scoring terms", 0, 0)
        engine = bm25s.BM25(k1=settings.k1, b=settings.b, method="lucene", csc_backend="numpy")
        engine.index((documents, vocabulary), create_empty_token=False, show_progress=False)
        return cls(engine, settings)

    @classmethod
    def load(cls, folder: Path, settings: Bm25Settings) -> Self:
        """Open a saved index through a memory map."""
        import bm25s

        return cls(bm25s.BM25.load(str(folder), mmap=True), settings)

    def save(self, folder: Path) -> None:
        """Write the index into an existing folder."""
        self._engine.save(str(folder), show_progress=False)

    def _postings(self, term: str) -> tuple[Any, Any]:
        number = self._vocabulary.get(term)
        if number is None:
            return self._rows[:0], self._data[:0]
        span = slice(int(self._starts[number]), int(self._starts[number + 1]))
        return self._rows[span], self._data[span]
