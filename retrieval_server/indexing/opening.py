"""Opens a corpus and an index folder as a backend, and builds the index first if requested."""

from pathlib import Path
from typing import Any

from retrieval_server.backends.base import Backend, Passages, WaitingBackend
from retrieval_server.corpus import Corpus, Report, silent
from retrieval_server.errors import RetrievalError, Unavailable
from retrieval_server.index_kinds import IndexSettings, default_settings, kind_of
from retrieval_server.indexing.build import build_index
from retrieval_server.indexing.manifest import (
    MANIFEST,
    check,
    expected_manifest,
    how_to_build,
    manifest_without_corpus,
    read_manifest,
    said_settings,
    served_manifest,
)


def open_corpus(path: Path, folder: Path, *, report: Report = silent) -> Corpus:
    """The corpus, opened with the line offsets in the index folder if they belong to this file."""
    return Corpus(path, lines=folder, report=report)


def load_index(
    corpus: Corpus, folder: Path, settings: IndexSettings | None = None, *, report: Report = silent
) -> Backend:
    """Open the index in `folder`; without settings, with those of its manifest.

    Raises RetrievalError if it is missing, incomplete, or was built for another corpus or with other settings. An index
    made elsewhere (a FAISS file, a Lucene folder) has no manifest of ours; its number of passages and the meaning of
    its ids are checked instead.
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
    except Exception as cause:  # numpy, json, mmap and faiss each raise their own errors for a damaged file
        raise RetrievalError(f"the index {folder} is damaged: {cause}", remedy=remedy) from cause


def open_backend(
    corpus: Corpus, folder: Path, settings: IndexSettings | None = None, *, build: bool = False, report: Report = silent
) -> tuple[Backend, dict[str, Any]]:
    """The opened index in `folder` and its manifest; with `build`, an index that is missing or does not match is built.

    Without settings, those of the index's manifest are used; a new index is of the default kind. Raises RetrievalError,
    and Unavailable if a service behind the index is away: then nothing is built.
    """
    try:
        backend = load_index(corpus, folder, settings, report=report)
    except Unavailable:
        raise
    except RetrievalError:
        if not build or (settings is not None and kind_of(settings).foreign(settings) is not None):
            raise
        settings = used_settings(folder, settings)
        build_index(corpus, folder, settings, report=report)
        backend = load_index(corpus, folder, settings, report=report)
    settings = used_settings(folder, settings)
    return backend, served_manifest(corpus, settings)


def used_settings(folder: Path, settings: IndexSettings | None = None) -> IndexSettings:
    """The settings with which an index folder is opened: those given, or the manifest's, or the default ones."""
    return settings or _said(folder) or default_settings()


def open_without_corpus(
    folder: Path, settings: IndexSettings, *, report: Report = silent
) -> tuple[Passages, WaitingBackend, dict[str, Any]]:
    """What a kind without a corpus searches, its backend and its manifest. Raises RetrievalError."""
    passages, backend, source = kind_of(settings).open(folder, settings, report=report)
    return passages, backend, manifest_without_corpus(settings, source)


def _said(folder: Path) -> IndexSettings | None:
    """The settings in the manifest; None if there is no manifest, or one of the default kind without valid settings.

    Raises RetrievalError for any other manifest that can not be read: a default index must not replace it.
    """
    if not (folder / MANIFEST).exists():
        return None
    default = default_settings().kind
    remedy = f"give the settings of this index with --backend, or remove {folder} for a new index of `kind: {default}`"
    manifest = read_manifest(folder, remedy=remedy)
    try:
        return said_settings(manifest, folder, remedy=remedy)
    except RetrievalError:
        if manifest.get("backend") == default:
            return None
        raise
