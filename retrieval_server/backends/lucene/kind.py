"""An existing Lucene index as a kind: opened as it is, never built."""

from pathlib import Path

from retrieval_server.backends.base import Backend
from retrieval_server.backends.lucene.index import Lucene
from retrieval_server.backends.lucene.settings import LuceneSettings
from retrieval_server.corpus import Corpus, Report
from retrieval_server.index_kinds import IndexKind


class LuceneKind(IndexKind):
    """A folder that Anserini made."""

    settings, format, ready_within_s = LuceneSettings, 2, 3600.0

    def load(self, corpus: Corpus, folder: Path, settings: LuceneSettings, *, report: Report) -> Backend:
        return Lucene(settings, corpus, report=report)

    def foreign(self, settings: LuceneSettings) -> Path:
        return settings.path


KIND = LuceneKind()
