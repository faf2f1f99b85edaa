"""Building an index beside its place: `<folder>.partial` becomes the folder when the manifest is in it.

A dense build that was killed goes on where it was: finished shards of vectors stay. BM25 is built in one piece, minutes
for millions of passages, and starts anew. Either way the result is the same bytes as of a build in one go.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retrieval_server.backends.bm25 import Bm25
from retrieval_server.backends.vectors import RECORD, VECTORS, fill, open_vectors
from retrieval_server.config import Bm25Settings, DenseSettings
from retrieval_server.corpus import Corpus, Report, silent
from retrieval_server.errors import RetrievalError
from retrieval_server.indexing.manifest import MANIFEST, Settings, expected_manifest, write_manifest

FAISS_FILE = "index.faiss"
_GOAL = "building.json"  # what a partial folder is becoming

Rows = Callable[[int, int], Any]
"""Gives the vectors, float (end - start, dimension), of the passages from start to end."""


def build_index(corpus: Corpus, folder: Path, settings: Settings, *, report: Report = silent) -> None:
    """Build the index in `folder`, replacing what is there. Raises RetrievalError, and leaves the old index then."""
    if isinstance(settings, DenseSettings):
        from retrieval_server.backends.encoder import Encoder

        encoder = Encoder(settings.encoder)

        def encode(start: int, end: int) -> Any:
            return encoder.passages([corpus[row].contents for row in range(start, end)])

        build_from_vectors(corpus, folder, settings, rows=encode, dimension=encoder.dimension, report=report)
        return
    partial = _partial(corpus, folder, settings, resume=False, report=report)
    if isinstance(settings, Bm25Settings):
        Bm25.build(corpus, settings, report=report).save(partial)
    _finish(corpus, folder, settings, {}, report)


def build_from_vectors(
    corpus: Corpus, folder: Path, settings: DenseSettings, *, rows: Rows, dimension: int, report: Report = silent
) -> None:
    """Build a dense index in `folder` from vectors, wherever they come from."""
    partial = _partial(corpus, folder, settings, resume=True, report=report)
    vectors = fill(partial, passages=len(corpus), dimension=dimension, dtype=settings.vectors, rows=rows, report=report)
    if vectors.shape != (len(corpus), dimension):
        raise RetrievalError(f"{partial / VECTORS} has the shape {vectors.shape}", remedy=f"remove {partial}")
    import faiss

    from retrieval_server.backends.faiss_index import make

    faiss.write_index(make(vectors, settings, report=report), str(partial / FAISS_FILE))
    described = {"dimension": dimension, "metric": "inner_product", "vectors": len(vectors)}
    (partial / RECORD).unlink()
    _finish(corpus, folder, settings, described, report)


def convert_index(
    corpus: Corpus, source: Path, folder: Path, settings: DenseSettings, *, report: Report = silent
) -> None:
    """Another layout of the vectors of an index folder, or of a FAISS file that holds them, without encoding."""
    if source.is_dir():
        vectors = open_vectors(source)
        stored, dimension = vectors.shape

        def rows(start: int, end: int) -> Any:
            return vectors[start:end]
    else:
        from retrieval_server.backends.faiss_index import read

        index = read(source)
        stored, dimension = index.ntotal, index.d

        def rows(start: int, end: int) -> Any:
            return index.reconstruct_n(start, end - start)

    if stored != len(corpus):
        raise RetrievalError(
            f"{source} holds {stored} vectors, the corpus {len(corpus)} passages",
            remedy="give the corpus that it was made of",
        )
    build_from_vectors(corpus, folder, settings, rows=rows, dimension=dimension, report=report)


def _partial(corpus: Corpus, folder: Path, settings: Settings, *, resume: bool, report: Report) -> Path:
    corpus.refuse_double_ids(report)
    partial = folder.with_name(folder.name + ".partial")
    goal = json.dumps(expected_manifest(corpus, settings), indent=1)
    if not (resume and (partial / _GOAL).exists() and (partial / _GOAL).read_text(encoding="utf-8") == goal):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        (partial / _GOAL).write_text(goal, encoding="utf-8")
    (partial / MANIFEST).unlink(missing_ok=True)
    return partial


def _finish(corpus: Corpus, folder: Path, settings: Settings, described: dict[str, Any], report: Report) -> None:
    partial = folder.with_name(folder.name + ".partial")
    (partial / _GOAL).unlink(missing_ok=True)
    corpus.save_lines(partial)
    for path in partial.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    write_manifest(partial, expected_manifest(corpus, settings), described, report)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
