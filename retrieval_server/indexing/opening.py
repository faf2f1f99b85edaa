"""From a corpus, a folder and settings to a backend that answers. Each kind of index is one line of `_load`."""

from pathlib import Path
from typing import Any

from retrieval_server.backends.base import Backend
from retrieval_server.backends.bm25.index import Bm25
from retrieval_server.backends.bm25.settings import Bm25Settings
from retrieval_server.backends.dense.index import Dense, Engine
from retrieval_server.backends.dense.settings import DenseSettings
from retrieval_server.backends.dense.vectors import open_vectors
from retrieval_server.backends.lucene.index import Lucene
from retrieval_server.backends.lucene.settings import LuceneSettings
from retrieval_server.corpus import Corpus, Report, silent
from retrieval_server.errors import RetrievalError
from retrieval_server.indexing.build import FAISS_FILE, build_index
from retrieval_server.indexing.manifest import (
    MANIFEST,
    Settings,
    check,
    expected_manifest,
    mend,
    read_manifest,
    said_settings,
)


def open_corpus(path: Path, folder: Path, *, report: Report = silent) -> Corpus:
    """The corpus, by the line offsets in the index folder when they are this file's."""
    return Corpus(path, lines=folder, report=report)


def load_index(corpus: Corpus, folder: Path, settings: Settings | None = None, *, report: Report = silent) -> Backend:
    """Open the index in `folder`; without settings, as its manifest says.

    Raises RetrievalError when it is missing, cut short, or was made for another corpus or with other settings. An index
    that others have made (a FAISS file, a Lucene folder) has no manifest of ours: its number of passages is checked,
    and what its ids mean.
    """
    remedy = mend(corpus.path, folder)
    if settings is None:
        settings = said_settings(read_manifest(folder, remedy=remedy), folder, remedy=remedy)
    if isinstance(settings, Bm25Settings) or (isinstance(settings, DenseSettings) and settings.file is None):
        check(read_manifest(folder, remedy=remedy), folder, expected_manifest(corpus, settings), remedy=remedy)
    report("opening the index", 0, 0)
    try:
        return _load(corpus, folder, settings, report)
    except RetrievalError:
        raise
    except Exception as cause:  # numpy, json, mmap and faiss each have their own errors for a damaged file
        raise RetrievalError(f"the index {folder} is damaged: {cause}", remedy=remedy) from cause


def _load(corpus: Corpus, folder: Path, settings: Settings, report: Report) -> Backend:
    match settings:
        case Bm25Settings():
            return Bm25.load(folder, settings)
        case LuceneSettings():
            return Lucene(settings, corpus, report=report)
        case DenseSettings():
            engine, dimension = _engine(corpus, folder, settings, report)
            report("loading the encoder", 0, 0)
            from retrieval_server.backends.dense.encoder import Encoder

            encoder = Encoder(settings.encoder)
            if encoder.dimension != dimension:
                raise RetrievalError(
                    f"the encoder {settings.encoder.model} makes vectors of {encoder.dimension} numbers, the index "
                    f"holds {dimension}",
                    remedy="give the encoder that the index was made with",
                )
            return Dense(encoder, engine, settings)


def _engine(corpus: Corpus, folder: Path, settings: DenseSettings, report: Report) -> tuple[Engine, int]:
    if settings.engine == "torch":
        from retrieval_server.backends.dense.torch_exact import TorchEngine

        vectors = open_vectors(folder)
        return TorchEngine(vectors, settings), vectors.shape[1]
    from retrieval_server.backends.dense.faiss_index import FaissEngine, read

    if settings.file is not None:
        from retrieval_server.backends.dense.foreign_faiss import ForeignIndex

        foreign = ForeignIndex(read(settings.file), corpus, settings.file, report=report)
        return FaissEngine(foreign.index, settings, rows=foreign.rows), foreign.index.d
    index = read(folder / FAISS_FILE)
    return FaissEngine(index, settings, vectors=open_vectors(folder)), index.d


def open_backend(
    corpus: Corpus, folder: Path, settings: Settings | None = None, *, build: bool = False, report: Report = silent
) -> tuple[Backend, dict[str, Any]]:
    """The index in `folder` and what it is; with `build`, one that is missing or another's is built.

    Without settings, the index's manifest says what it is, and a new index is BM25. Raises RetrievalError.
    """
    try:
        backend = load_index(corpus, folder, settings, report=report)
    except RetrievalError:
        if not build or isinstance(settings, LuceneSettings):
            raise
        settings = settings or _said(folder) or Bm25Settings()
        build_index(corpus, folder, settings, report=report)
        backend = load_index(corpus, folder, settings, report=report)
    settings = settings or _said(folder)
    assert settings is not None
    return backend, {**expected_manifest(corpus, settings), "settings": settings.answers()}


def _said(folder: Path) -> Settings | None:
    if not (folder / MANIFEST).exists():
        return None
    try:
        return said_settings(read_manifest(folder, remedy=""), folder, remedy="")
    except RetrievalError:
        return None
