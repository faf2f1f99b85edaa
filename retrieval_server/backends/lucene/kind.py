"""Registers existing Lucene indexes as a kind: opened unchanged, never built."""

from pathlib import Path

from retrieval_server.backends.base import Backend
from retrieval_server.backends.lucene.index import Lucene
from retrieval_server.backends.lucene.settings import LuceneSettings
from retrieval_server.corpus import Corpus, Report
from retrieval_server.index_kinds import IndexKind


class LuceneKind(IndexKind):
    """A Lucene index folder made by Anserini."""

    settings, format, ready_within_s = LuceneSettings, 2, 3600.0

    def load(self, corpus: Corpus, folder: Path, settings: LuceneSettings, *, report: Report) -> Backend:
        return Lucene(settings, corpus, report=report)

    def foreign(self, settings: LuceneSettings) -> Path:
        return settings.path


KIND = LuceneKind()
