"""Building an index beside its place: `<folder>.partial` becomes the folder when the manifest is in it.

A dense build that was killed, at whatever stage, or that found no room goes on where it was: finished shards of vectors
stay. BM25 is built in one piece, minutes for millions of passages, and starts again. Either way the result is the same
bytes as of a build in one go. A second build of the same folder waits for the first.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retrieval_server.backends.bm25.analysis import stemmer_release
from retrieval_server.backends.bm25.index import Bm25
from retrieval_server.backends.bm25.settings import Bm25Settings
from retrieval_server.backends.dense.settings import DenseSettings
from retrieval_server.backends.dense.vectors import RECORD, VECTORS, fill, open_vectors
from retrieval_server.corpus import Corpus, Report, silent
from retrieval_server.errors import RetrievalError
from retrieval_server.indexing.lock import only_build
from retrieval_server.indexing.manifest import (
    MANIFEST,
    Settings,
    check,
    expected_manifest,
    read_manifest,
    write_manifest,
)

FAISS_FILE = "index.faiss"
_GOAL = "building.json"  # what a partial folder is becoming
_PROGRESS = (_GOAL, RECORD)  # of a build; they stay until everything else is written

Rows = Callable[[int, int], Any]
"""Gives the vectors, float (end - start, dimension), of the passages from start to end."""


def build_index(corpus: Corpus, folder: Path, settings: Settings, *, report: Report = silent) -> None:
    """Build the index in `folder`, replacing what is there. Raises RetrievalError, and leaves the old index then."""
    if isinstance(settings, DenseSettings):
        from retrieval_server.backends.dense.encoder import Encoder

        encoder = Encoder(settings.encoder)

        def encode(start: int, end: int) -> Any:
            return encoder.passages([corpus[row].contents for row in range(start, end)])

        build_from_vectors(corpus, folder, settings, rows=encode, dimension=encoder.dimension, report=report)
        return

    def build(partial: Path) -> dict[str, Any]:
        if not isinstance(settings, Bm25Settings):
            return {}
        Bm25.build(corpus, settings, report=report).save(partial)
        release = stemmer_release(settings.stemmer)
        return {"stemmer": release} if release else {}

    _build(corpus, folder, settings, build, resume=False, report=report)


def build_from_vectors(
    corpus: Corpus, folder: Path, settings: DenseSettings, *, rows: Rows, dimension: int, report: Report = silent
) -> None:
    """Build a dense index in `folder` from vectors, wherever they come from."""

    def build(partial: Path) -> dict[str, Any]:
        dtype = settings.vectors
        vectors = fill(partial, passages=len(corpus), dimension=dimension, dtype=dtype, rows=rows, report=report)
        if vectors.shape != (len(corpus), dimension):
            raise RetrievalError(f"{partial / VECTORS} has the shape {vectors.shape}", remedy=f"remove {partial}")
        from retrieval_server.backends.dense.faiss_index import make, write

        write(make(vectors, settings, report=report), partial / FAISS_FILE)
        return {"dimension": dimension, "metric": "inner_product", "vectors": len(vectors)}

    _build(corpus, folder, settings, build, resume=True, report=report)


def convert_index(
    corpus: Corpus, source: Path, folder: Path, settings: DenseSettings, *, report: Report = silent
) -> None:
    """Another layout of the vectors of an index folder, or of a FAISS file that holds them, without encoding."""
    if source.is_dir():
        vectors = open_vectors(source)
        stored, dimension = vectors.shape
        if stored != len(corpus):
            raise RetrievalError(
                f"{source} holds {stored} vectors, the corpus {len(corpus)} passages",
                remedy="give the corpus that it was made of",
            )

        def rows(start: int, end: int) -> Any:
            return vectors[start:end]
    else:
        from retrieval_server.backends.dense.faiss_index import read
        from retrieval_server.backends.dense.foreign_faiss import ForeignIndex

        index = ForeignIndex(read(source), corpus, source, report=report)
        index.check_vectors()
        dimension, rows = index.index.d, index.vectors
    build_from_vectors(corpus, folder, settings, rows=rows, dimension=dimension, report=report)


def _build(
    corpus: Corpus,
    folder: Path,
    settings: Settings,
    build: Callable[[Path], dict[str, Any]],
    *,
    resume: bool,
    report: Report,
) -> None:
    """Fill the partial folder by `build`, which describes what it made, and put it in the index's place."""
    corpus.refuse_double_ids(report)
    expected = expected_manifest(corpus, settings)
    partial = folder.with_name(folder.name + ".partial")
    try:
        with only_build(folder, report) as waited:
            if waited and _is(folder, expected):
                return
            if not (resume and _is(partial, expected)):  # else it was killed before the folder got its name
                _begin(partial, expected, resume=resume)
                described = build(partial)
                corpus.save_lines(partial)
                for path in partial.iterdir():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
                write_manifest(partial, expected, described, report, besides=_PROGRESS)
            for name in _PROGRESS:
                (partial / name).unlink(missing_ok=True)
            _put(partial, folder)
    except OSError as cause:
        goes_on = "; the vectors that are made stay, and the next build goes on with them" if resume else ""
        raise RetrievalError(
            f"the index {folder} can not be written: {cause}", remedy=f"make room or give another folder{goes_on}"
        ) from cause


def _is(folder: Path, expected: dict[str, Any]) -> bool:
    """Whether the folder holds the whole of this index."""
    try:
        check(read_manifest(folder, remedy=""), folder, expected, remedy="")
    except RetrievalError:
        return False
    return True


def _begin(partial: Path, expected: dict[str, Any], *, resume: bool) -> None:
    goal = json.dumps(expected, indent=1)
    if not (resume and (partial / _GOAL).exists() and (partial / _GOAL).read_text(encoding="utf-8") == goal):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        (partial / _GOAL).write_text(goal, encoding="utf-8")
    (partial / MANIFEST).unlink(missing_ok=True)


def _put(partial: Path, folder: Path) -> None:
    """The partial folder in the place of the other, which is there until the new one is."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
