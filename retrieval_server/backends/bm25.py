"""BM25 without Java: bm25s with Lucene's formula, Porter stemming and English stop words (spec §7.3)."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from retrieval_server.config import Bm25Settings
from retrieval_server.corpus import Corpus
from retrieval_server.errors import RetrievalError


class Bm25:
    """A memory-mapped BM25 index."""

    def __init__(self, engine: Any, settings: Bm25Settings) -> None:
        self._engine = engine
        self._settings = settings
        self._rows = int(engine.scores["num_docs"])

    @staticmethod
    def _tokens(texts: Sequence[str], settings: Bm25Settings) -> list[list[str]]:
        import bm25s
        import Stemmer

        stem = Stemmer.Stemmer(settings.stemmer)
        return bm25s.tokenize(
            list(texts), stopwords=settings.stopwords, stemmer=stem, return_ids=False, show_progress=False
        )  # pyright: ignore[reportReturnType]

    @staticmethod
    def library() -> str:
        """What wrote an index and must read it."""
        return f"bm25s {version('bm25s')}"

    @classmethod
    def build(cls, corpus: Corpus, settings: Bm25Settings) -> Self:
        """Index every passage's contents. Raises RetrievalError when there is not one term in them."""
        import bm25s

        engine = bm25s.BM25(k1=settings.k1, b=settings.b, method="lucene")
        tokens = cls._tokens([document.contents for document in corpus], settings)
        if not any(tokens):
            raise RetrievalError("the corpus has no word to search for", remedy="give passages with text in `contents`")
        engine.index(tokens, show_progress=False)
        return cls(engine, settings)

    @classmethod
    def load(cls, folder: Path, settings: Bm25Settings) -> Self:
        """Open a saved index through a memory map."""
        import bm25s

        return cls(bm25s.BM25.load(str(folder), mmap=True), settings)

    def save(self, folder: Path) -> None:
        """Write the index into an existing folder."""
        self._engine.save(str(folder), show_progress=False)

    def search(self, queries: Sequence[str], *, topk: int) -> list[list[tuple[int, float]]]:
        """For each query at most `topk` (row, score), best first, ties by row; only passages that share a term."""
        import numpy as np

        results: list[list[tuple[int, float]]] = []
        for tokens in self._tokens(queries, self._settings):
            known = [token for token in tokens if token in self._engine.vocab_dict]
            if not known:
                results.append([])
                continue
            scores = self._engine.get_scores(known)
            best = np.lexsort((np.arange(self._rows), -scores))[:topk]
            results.append([(int(row), float(scores[row])) for row in best if scores[row] > 0])
        return results
