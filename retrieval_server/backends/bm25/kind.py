"""Registers BM25 as a kind of index: built in one step, also by a server, and mapped into memory."""

from pathlib import Path
from typing import Any

from retrieval_server.backends.base import Backend
from retrieval_server.backends.bm25.analysis import stemmer_identity, stemmer_release
from retrieval_server.backends.bm25.index import Bm25
from retrieval_server.backends.bm25.settings import Bm25Settings
from retrieval_server.corpus import Corpus, Report
from retrieval_server.index_kinds import IndexKind


class Bm25Kind(IndexKind):
    """Terms by Lucene's formula. Millions of passages take minutes, so a server builds a missing index."""

    settings, format, built_at_start = Bm25Settings, 3, True
    disk_ratio = 0.5  # measured 0.46 on the embedded corpus

    def load(self, corpus: Corpus, folder: Path, settings: Bm25Settings, *, report: Report) -> Backend:
        return Bm25.load(folder, settings)

    def build(self, corpus: Corpus, settings: Bm25Settings, folder: Path, *, report: Report) -> dict[str, Any]:
        Bm25.build(corpus, settings, report=report).save(folder)
        release = stemmer_release(settings.stemmer)
        return {"stemmer": release} if release else {}

    def made_with(self, settings: Bm25Settings) -> dict[str, Any]:
        """The stemmer's release, if its terms change between releases."""
        return stemmer_identity(settings.stemmer)


KIND = Bm25Kind()
