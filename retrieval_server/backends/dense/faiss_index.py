"""Builds and searches FAISS indexes of each layout, memory-mapped if FAISS can.

Scores are inner products, or negated squared distances if an index from elsewhere measures those. A compressed layout
finds candidates; the stored vectors determine their order. Ids of -1, which FAISS returns if it finds fewer than k, are
dropped.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from packaging.version import Version

from retrieval_server.backends.base import Hits
from retrieval_server.backends.dense.settings import COMPRESSED, DenseSettings
from retrieval_server.backends.ordering import fetch_ties, ordered
from retrieval_server.corpus import Report, silent
from retrieval_server.errors import RetrievalError

_STEP = 16384
_GPU_MOST = 2048  # FAISS selects no more on a GPU
_TIES, _FEWEST = 16, 64  # factor for fetching more candidates among ties of compressed scores
_FEW = 3  # from this many queries on, one matrix product, which reads the index once for all, beats a thread per query


Rows = Callable[[Any], Any]
"""Maps the ids that an index returns to the corpus's rows, both int64 arrays."""


def factory(settings: DenseSettings, *, dimension: int, passages: int) -> str:
    """FAISS's name of the layout."""
    lists = min(settings.lists or max(1, round(4 * math.sqrt(passages))), max(1, passages // 39))
    # A sub-quantizer of the fast scan takes half a byte; their number must be even and divide the dimension.
    wanted = 2 * (settings.pq_bytes or max(1, dimension // 8))
    halves = max((m for m in range(2, wanted + 1, 2) if dimension % m == 0), default=2)
    return {
        "flat": "Flat",
        "hnsw": f"HNSW{settings.hnsw_links}",
        "sq8": "SQ8",
        "pq": f"PQ{halves}x4fs",
        "rabitq": f"RR{dimension},RaBitQfs",
        "ivf_flat": f"IVF{lists},Flat",
        "ivf_sq8": f"IVF{lists},SQ8",
        "ivf_pq": f"IVF{lists},PQ{halves}x4fs",
        "ivf_rabitq": f"RR{dimension},IVF{lists},RaBitQfs",
    }[settings.layout]


def make(vectors: Any, settings: DenseSettings, *, report: Report = silent) -> Any:
    """An index over `vectors`, (passages, dimension), float16 or float32. The same vectors give the same index."""
    import faiss
    import numpy as np

    passages, dimension = vectors.shape
    index = faiss.index_factory(
        dimension, factory(settings, dimension=dimension, passages=passages), faiss.METRIC_INNER_PRODUCT
    )
    if settings.layout == "hnsw":
        graph: Any = faiss.downcast_index(index)
        graph.hnsw.efConstruction = settings.ef_construction
        # FAISS prunes links to passages that are closer to another neighbour. If many passages surround a few, few
        # links remain: of 100,000 synthetic passages one in six had no incoming link and was never found.
        graph.keep_max_size_level0 = True
    if not index.is_trained:
        report("training the index", 0, 0)
        ivf = faiss.try_extract_index_ivf(index)
        enough = min(passages, max(65536, 64 * ivf.nlist if ivf else 0))
        sample = np.linspace(0, passages - 1, enough).astype(np.int64)
        index.train(np.ascontiguousarray(vectors[sample], dtype=np.float32))
    # Before 1.15.1 the order in which FAISS linked a graph depended on timing, unless it used one thread.
    threads = faiss.omp_get_max_threads()
    if settings.layout == "hnsw" and Version(faiss.__version__) < Version("1.15.1"):
        faiss.omp_set_num_threads(1)
    try:
        for start in range(0, passages, _STEP):
            report("adding vectors", start, passages)
            index.add(np.ascontiguousarray(vectors[start : start + _STEP], dtype=np.float32))
    finally:
        faiss.omp_set_num_threads(threads)
    return index


def write(index: Any, path: Path) -> None:
    """Write an index. Raises OSError, also for a disk that gets full at the end: FAISS only prints that."""
    import faiss

    failed: list[OSError] = []
    with path.open("wb") as file:

        def take(piece: Any) -> int:
            try:
                return file.write(piece)
            except OSError as error:  # FAISS would turn it into a RuntimeError
                failed.append(error)
                return 0

        try:
            faiss.write_index(index, faiss.PyCallbackIOWriter(take))  # pyright: ignore[reportAttributeAccessIssue]
        except RuntimeError:
            if not failed:
                raise
    if failed:
        raise failed[0]


def read(path: Path) -> Any:
    """The FAISS index in a file, memory-mapped. Raises RetrievalError."""
    import faiss

    try:
        try:
            return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError:  # this layout can not be mapped
            return faiss.read_index(str(path))
    except RuntimeError as cause:
        raise RetrievalError(
            f"{path} is not a readable FAISS index: {cause}", remedy="copy it again, or build it again"
        ) from cause


def blas_threshold(version: str, dimension: int) -> int:
    """FAISS's `distance_compute_blas_threshold` for a search of `_FEW` queries, in the unit of the installed release.

    Up to 1.13 it counts queries; from 1.14 on it counts the vector components of all queries together.
    """
    return _FEW * dimension if Version(version) >= Version("1.14") else _FEW


class FaissEngine:
    """Searches a FAISS index. `vectors` are the stored ones, used to score what it finds; None: those in a flat or HNSW
    index, else FAISS's scores. `rows` maps the ids that it returns to rows; None: ids are rows.
    """

    def __init__(self, index: Any, settings: DenseSettings, *, vectors: Any = None, rows: Rows | None = None) -> None:
        import faiss

        exact = settings.file is not None or settings.layout not in COMPRESSED
        self._most: int = index.ntotal
        self._sign = -1.0 if index.metric_type == faiss.METRIC_L2 else 1.0
        self._flat: Any = None
        if settings.engine == "faiss_gpu":
            index = _on_gpus(index)
            self._most = min(self._most, _GPU_MOST)
        else:
            _set_effort(index, settings)
            self._flat = _flat_inside(index)
        self._index = index
        self._rows = rows
        self._vectors: Any = vectors if exact or settings.candidates else None
        self._candidates = 0 if exact or vectors is None else settings.candidates
        if self._candidates:
            self._most = min(self._most, _TIES * max(self._candidates, _FEWEST))
        faiss.cvar.distance_compute_blas_threshold = blas_threshold(faiss.__version__, index.d)

    def search(self, queries: Any, *, topk: int) -> list[Hits]:
        """`queries`: float32 (queries, dimension). At most `topk` (row, score) each, best first, ties by row."""
        import numpy as np

        queries = np.ascontiguousarray(queries)
        wanted = max(topk, self._candidates)
        most = min(max(self._most, wanted), self._index.ntotal)
        found = fetch_ties(self._fetch, queries, wanted, most=most)
        return [self._ranked(query, *pair, topk) for query, pair in zip(queries, found, strict=True)]

    def _fetch(self, queries: Any, wanted: int) -> tuple[Any, Any]:
        scores, ids = self._index.search(queries, wanted)
        return self._sign * scores, ids

    def _ranked(self, query: Any, ids: Any, scores: Any, topk: int) -> Hits:
        import numpy as np

        ids = np.sort(ids) if self._vectors is not None or self._flat is not None else ids  # in the order of the file
        if self._flat is not None:
            scores = self._scores(query, self._flat.reconstruct_batch(ids)) if len(ids) else scores
        elif self._vectors is not None:
            scores = self._scores(query, self._vectors[ids].astype(np.float32))
        return ordered(ids if self._rows is None else self._rows(ids), scores, topk)

    def _scores(self, query: Any, vectors: Any) -> Any:
        """The score of each vector, computed separately: equal for copies, unlike those of a matrix product."""
        import numpy as np

        if self._sign < 0:
            vectors, query = query - vectors, None
            return -np.einsum("kd,kd->k", vectors, vectors)
        return np.einsum("kd,d->k", vectors, query)


def _set_effort(index: Any, settings: DenseSettings) -> None:
    """Set how far a search looks, in whichever layer of the index has that parameter."""
    import faiss

    ivf = faiss.try_extract_index_ivf(index)
    efforts = {"nprobe": min(settings.probes, ivf.nlist)} if ivf is not None else {"efSearch": settings.ef_search}
    for name, effort in efforts.items():
        with suppress(RuntimeError):  # this kind of index has no such parameter
            faiss.ParameterSpace().set_index_parameter(index, name, effort)


def _flat_inside(index: Any) -> Any:
    """The index itself, or an HNSW graph's storage, if it holds uncompressed vectors by row; else None."""
    import faiss

    plain: Any = faiss.downcast_index(index)
    if isinstance(plain, faiss.IndexHNSW):
        plain = faiss.downcast_index(plain.storage)
    return plain if isinstance(plain, faiss.IndexFlat) else None


def _on_gpus(index: Any) -> Any:
    """A copy sharded over all visible GPUs, stored in fp16."""
    import faiss

    if not hasattr(faiss, "index_cpu_to_all_gpus") or faiss.get_num_gpus() == 0:
        raise RetrievalError(
            "FAISS finds no GPU",
            remedy="install a GPU build of FAISS (faiss-gpu-cu12), or use `engine: torch` with `torch_device: cuda`",
        )
    options = faiss.GpuMultipleClonerOptions()
    options.shard = True
    options.useFloat16 = True
    return faiss.index_cpu_to_all_gpus(index, co=options)
