"""Reads a FAISS file that was made elsewhere: maps its ids to rows of the corpus, and returns its vectors by row.

An index numbers its vectors itself, or returns ids that were given to it. Such ids are accepted only if they are
provably the numbers of rows or the ids of the corpus's passages. Anything else is refused, because nobody would notice
a wrong passage with a good score.
"""

from pathlib import Path
from typing import Any

from retrieval_server.backends.dense.faiss_index import Rows
from retrieval_server.corpus import Corpus, Report, silent
from retrieval_server.errors import RetrievalError


class ForeignIndex:
    """A FAISS index over a corpus. `index` is the index to search; it is valid as long as this object exists."""

    def __init__(self, index: Any, corpus: Corpus, path: Path, *, report: Report = silent) -> None:
        import faiss
        import numpy as np

        self._path = path
        self._owner = index
        given: Any = faiss.downcast_index(index)
        if index.ntotal != len(corpus):
            raise RetrievalError(
                f"{path} holds {index.ntotal} vectors, the corpus {len(corpus)} passages",
                remedy="give the corpus that it was built from",
            )
        if index.metric_type not in (faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2):
            raise RetrievalError(
                f"{path} measures by FAISS's metric {index.metric_type}", remedy="give one of inner products or L2"
            )
        self.index: Any = given
        self._row_of: Rows | None = None
        self._keys: Any = None  # the index's id for the vector of each row; None: the row's number
        if isinstance(given, faiss.IndexIDMap):
            self.index = faiss.downcast_index(given.index)
            rows = self._rows_of(faiss.vector_to_array(given.id_map), corpus, report)
            if rows is not None:
                self._row_of, self._keys = lambda found: rows[found], np.argsort(rows)
        elif (stored := _stored_ids(given)) is not None:
            ids = np.sort(stored)
            rows = self._rows_of(ids, corpus, report)
            if rows is not None:
                self._row_of, self._keys = lambda found: rows[np.searchsorted(ids, found)], ids[np.argsort(rows)]

    def rows(self, ids: Any) -> Any:
        """The rows of ids that the index returned."""
        return ids if self._row_of is None else self._row_of(ids)

    def _rows_of(self, ids: Any, corpus: Corpus, report: Report) -> Any:
        """The row of each id; None if the ids are the rows in order."""
        import numpy as np

        numbers = np.arange(len(corpus))
        if np.array_equal(ids, numbers):
            return None
        named = _integer_ids(corpus, report)
        if named is not None:
            order = np.argsort(named, kind="stable")
            if np.array_equal(named[order], np.sort(ids)) and len(np.unique(ids)) == len(ids):
                return order[np.searchsorted(named[order], ids)]
        if np.array_equal(np.sort(ids), numbers):
            return ids
        raise RetrievalError(
            f"{self._path} answers with ids like {', '.join(map(str, ids[:3]))}, which are neither the numbers of the "
            f"corpus's rows (from 0 to {len(corpus) - 1}) nor the ids of its passages",
            remedy="give the corpus that it was built from, or build it with ids that are rows or the passages' ids",
        )

    def vectors(self, start: int, end: int) -> Any:
        """The vectors of the rows from start to end, (end - start, dimension), as stored in the index."""
        import numpy as np

        numbers = np.arange(start, end)
        return self.index.reconstruct_batch(numbers if self._keys is None else self._keys[start:end])

    def check_vectors(self) -> None:
        """Raise RetrievalError unless the index returns uncompressed vectors, for inner products or of equal length."""
        import faiss
        import numpy as np

        remedy = "build the index from the corpus instead"
        if not _holds_whole_vectors(self.index):
            raise RetrievalError(f"{self._path} holds compressed vectors, not the original ones", remedy=remedy)
        ivf = faiss.try_extract_index_ivf(self.index)
        if ivf is not None:
            ivf.set_direct_map_type(faiss.DirectMap.Hashtable)  # pyright: ignore[reportAttributeAccessIssue]
        try:
            # Only one vector: an error in FAISS's loop over many would end the process.
            self.index.reconstruct(int(0 if self._keys is None else self._keys[0]))
        except RuntimeError as cause:
            raise RetrievalError(f"{self._path} does not return its vectors: {cause}", remedy=remedy) from cause
        lengths = np.linalg.norm(self.vectors(0, min(1000, self.index.ntotal)), axis=1)
        if self.index.metric_type == faiss.METRIC_L2 and np.ptp(lengths) > 1e-3 * lengths.max():
            raise RetrievalError(
                f"{self._path} measures distances between vectors of unlike lengths; inner products rank otherwise",
                remedy="search it as it is, with `file:`, or build the index from the corpus",
            )


def _holds_whole_vectors(index: Any) -> bool:
    """Whether a vector takes at least two bytes per number, as fp16 does."""
    import faiss

    plain: Any = faiss.downcast_index(index)
    if isinstance(plain, faiss.IndexPreTransform):
        inner = faiss.downcast_index(plain.index)
        return inner.d >= plain.d and _holds_whole_vectors(inner)
    if isinstance(plain, faiss.IndexHNSW):
        return _holds_whole_vectors(plain.storage)
    if isinstance(plain, faiss.IndexRefine):
        return _holds_whole_vectors(plain.refine_index)
    try:
        size = plain.code_size if isinstance(plain, faiss.IndexIVF) else plain.sa_code_size()
    except RuntimeError:  # this kind of index has no codes
        return False
    return size >= 2 * plain.d


def _stored_ids(index: Any) -> Any:
    """The ids that the index, or the layers inside it, was given or has assigned itself; None: positions."""
    import faiss
    import numpy as np

    plain: Any = faiss.downcast_index(index)
    if isinstance(plain, faiss.IndexPreTransform):
        return _stored_ids(plain.index)
    if isinstance(plain, faiss.IndexRefine):
        return _stored_ids(plain.base_index)
    if isinstance(plain, faiss.IndexIDMap):
        return faiss.vector_to_array(plain.id_map)
    if not isinstance(plain, faiss.IndexIVF):
        return None
    lists: Any = plain.invlists
    sizes = [(number, size) for number in range(plain.nlist) if (size := lists.list_size(number))]
    return np.concatenate([faiss.rev_swig_ptr(lists.get_ids(number), size).copy() for number, size in sizes])


def _integer_ids(corpus: Corpus, report: Report) -> Any:
    """The passages' ids as numbers; None if one is not a number."""
    import numpy as np

    def ids() -> Any:
        for row, document in enumerate(corpus):
            if row % 10_000 == 0:
                report("reading the corpus's ids", row, len(corpus))
            yield int(document.id)

    try:
        return np.fromiter(ids(), dtype=np.int64, count=len(corpus))
    except (ValueError, OverflowError):
        return None
