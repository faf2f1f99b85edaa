"""Writes the files of a dense index from vectors of any source: an encoder, an index folder, or a FAISS file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from retrieval_server.backends.dense.settings import DenseSettings
from retrieval_server.backends.dense.vectors import VECTORS, fill, open_vectors
from retrieval_server.corpus import Corpus, Report, silent
from retrieval_server.errors import RetrievalError

FAISS_FILE = "index.faiss"

Rows = Callable[[int, int], Any]
"""Returns the vectors, float (end - start, dimension), of the passages from start to end."""


def from_vectors(
    corpus: Corpus, settings: DenseSettings, *, rows: Rows, dimension: int, report: Report = silent
) -> Callable[[Path], dict[str, Any]]:
    """The argument of `indexing.build.write_index`: fills a folder, and keeps finished shards of vectors in it."""

    def write_files(folder: Path) -> dict[str, Any]:
        dtype = settings.vectors
        vectors = fill(folder, passages=len(corpus), dimension=dimension, dtype=dtype, rows=rows, report=report)
        if vectors.shape != (len(corpus), dimension):
            raise RetrievalError(f"{folder / VECTORS} has the shape {vectors.shape}", remedy=f"remove {folder}")
        from retrieval_server.backends.dense.faiss_index import make, write

        write(make(vectors, settings, report=report), folder / FAISS_FILE)
        return {"dimension": dimension, "metric": "inner_product", "vectors": len(vectors)}

    return write_files


def existing_vectors(corpus: Corpus, source: Path, *, report: Report) -> tuple[Rows, int]:
    """The vectors of an index folder of ours or of a FAISS file, and their dimension. Raises RetrievalError."""
    if source.is_dir():
        vectors = open_vectors(source)
        stored, dimension = vectors.shape
        if stored != len(corpus):
            raise RetrievalError(
                f"{source} holds {stored} vectors, the corpus {len(corpus)} passages",
                remedy="give the corpus that it was built from",
            )
        return (lambda start, end: vectors[start:end]), dimension
    from retrieval_server.backends.dense.faiss_index import read
    from retrieval_server.backends.dense.foreign_faiss import ForeignIndex

    index = ForeignIndex(read(source), corpus, source, report=report)
    index.check_vectors()
    return index.vectors, index.index.d
