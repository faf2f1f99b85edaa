"""From a corpus, a folder and settings to a backend that answers."""

from pathlib import Path
from typing import Any

from retrieval_server.backends.base import Backend
from retrieval_server.corpus import Corpus, Report, silent
from retrieval_server.errors import RetrievalError
from retrieval_server.index_kinds import IndexSettings, default_settings, kind_of
from retrieval_server.indexing.build import build_index
from retrieval_server.indexing.manifest import (
    MANIFEST,
    check,
    expected_manifest,
    how_to_build,
    read_manifest,
    said_settings,
)


def open_corpus(path: Path, folder: Path, *, report: Report = silent) -> Corpus:
    """The corpus, by the line offsets in the index folder when they are this file's."""
    return Corpus(path, lines=folder, report=report)


def load_index(
    corpus: Corpus, folder: Path, settings: IndexSettings | None = None, *, report: Report = silent
) -> Backend:
    """Open the index in `folder`; without settings, as its manifest says.

    Raises RetrievalError when it is missing, cut short, or was made for another corpus or with other settings. An index
    that others have made (a FAISS file, a Lucene folder) has no manifest of ours: its number of passages is checked,
    and what its ids mean.
    """
    remedy = how_to_build(corpus.path, folder)
    if settings is None:
        settings = said_settings(read_manifest(folder, remedy=remedy), folder, remedy=remedy)
    kind = kind_of(settings)
    if kind.foreign(settings) is None:
        check(read_manifest(folder, remedy=remedy), folder, expected_manifest(corpus, settings), remedy=remedy)
    report("opening the index", 0, 0)
    try:
        return kind.load(corpus, folder, settings, report=report)
    except RetrievalError:
        raise
    except Exception as cause:  # numpy, json, mmap and faiss each have their own errors for a damaged file
        raise RetrievalError(f"the index {folder} is damaged: {cause}", remedy=remedy) from cause


def open_backend(
    corpus: Corpus, folder: Path, settings: IndexSettings | None = None, *, build: bool = False, report: Report = silent
) -> tuple[Backend, dict[str, Any]]:
    """The index in `folder` and what it is; with `build`, one that is missing or another's is built.

    Without settings, the index's manifest says what it is, and a new one is of the default kind. Raises RetrievalError.
    """
    try:
        backend = load_index(corpus, folder, settings, report=report)
    except RetrievalError:
        if not build or (settings is not None and kind_of(settings).foreign(settings) is not None):
            raise
        settings = settings or _said(folder) or default_settings()
        build_index(corpus, folder, settings, report=report)
        backend = load_index(corpus, folder, settings, report=report)
    settings = settings or _said(folder)
    assert settings is not None
    return backend, {**expected_manifest(corpus, settings), "settings": settings.answers()}


def _said(folder: Path) -> IndexSettings | None:
    if not (folder / MANIFEST).exists():
        return None
    try:
        return said_settings(read_manifest(folder, remedy=""), folder, remedy="")
    except RetrievalError:
        return None
