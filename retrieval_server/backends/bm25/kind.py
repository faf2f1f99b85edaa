"""Registers BM25 as a kind of index: built in one step, also by a server, and mapped into memory."""

from pathlib import Path
from typing import Any

from retrieval_server.backends.base import Backend
from retrieval_server.backends.bm25.analysis import stemmer_identity, stemmer_release
from retrieval_server.backends.bm25.block_max import MERGED
from retrieval_server.backends.bm25.engines import engine_for, engine_in
from retrieval_server.backends.bm25.plan import expected, table
from retrieval_server.backends.bm25.settings import Bm25Settings
from retrieval_server.corpus import Corpus, Report
from retrieval_server.index_kinds import IndexKind, IndexNeed, IndexPlan


class Bm25Kind(IndexKind):
    """Terms by Lucene's formula. Millions of passages take minutes, so a server builds a missing index."""

    settings, format, built_at_start = Bm25Settings, 3, True
    progress = (MERGED,)
    disk_ratio = 0.7  # measured: bm25s 0.46 on the embedded corpus; block_max 0.26, and 0.65 while it builds

    def load(self, corpus: Corpus, folder: Path, settings: Bm25Settings, *, report: Report) -> Backend:
        return engine_in(folder).load(folder, settings)

    def build(self, corpus: Corpus, settings: Bm25Settings, folder: Path, *, report: Report) -> dict[str, Any]:
        engine = engine_for(settings, passages=len(corpus))
        engine.build(corpus, settings, folder, report)
        release = stemmer_release(settings.stemmer)
        return {"engine": engine.name} | ({"stemmer": release} if release else {})

    def made_with(self, settings: Bm25Settings) -> dict[str, Any]:
        """The stemmer's release, if its terms change between releases."""
        return stemmer_identity(settings.stemmer)

    def need(self, settings: Bm25Settings, *, passages: int, dimension: int, cards: int) -> IndexNeed:
        engine = engine_for(settings, passages=passages)
        size = expected(engine.name, "bytes", passages=passages)
        return IndexNeed(disk=int(size * engine.while_built))

    def plan(self, *, passages: int, dimension: int, candidates: int | None) -> IndexPlan:
        return table(passages=passages)


KIND = Bm25Kind()
