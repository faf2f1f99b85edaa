"""Registers web search as a kind of index: it has no corpus, and keeps its answers in the index's folder."""

from pathlib import Path
from typing import Any

from retrieval_server.backends.base import Backend, Passages, WaitingBackend
from retrieval_server.backends.web.backend import Web
from retrieval_server.backends.web.latest import Latest
from retrieval_server.backends.web.settings import WebSettings
from retrieval_server.backends.web.store import FORMAT, Store, recorded_digest
from retrieval_server.corpus import Corpus, Report
from retrieval_server.errors import RetrievalError
from retrieval_server.index_kinds import IndexKind

THE_WEB = "the web"


def _recorded(digest: str) -> str:
    return f"recorded {digest}"


class WebKind(IndexKind):
    """The web through a provider, live, recorded, or replayed."""

    settings, format, searches_corpus = WebSettings, FORMAT, False

    def load(self, corpus: Corpus, folder: Path, settings: WebSettings, *, report: Report) -> Backend:
        raise RetrievalError("web search has no corpus", remedy="leave the corpus out")

    def source(self, folder: Path, settings: WebSettings) -> str:
        """The recorded answers by their digest. What the web answers tomorrow is not known."""
        return _recorded(recorded_digest(folder)) if settings.replays else THE_WEB

    def open(self, folder: Path, settings: WebSettings, *, report: Report) -> tuple[Passages, WaitingBackend, str]:
        if settings.mode == "live":
            latest = Latest()
            return latest, Web(settings, latest), THE_WEB
        store = Store(folder, writes=not settings.replays)
        if settings.replays:
            store.verify(report)
        return store, Web(settings, store), _recorded(store.digest) if settings.replays else THE_WEB

    def made_with(self, settings: WebSettings) -> dict[str, Any]:
        return {}


KIND = WebKind()
