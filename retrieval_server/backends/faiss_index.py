"""FAISS indexes: making one of each layout, and searching one, memory-mapped where FAISS can.

Scores are inner products. A compressed layout finds candidates; their order comes from the stored vectors. Ids of -1,
which FAISS gives when it has found fewer than k, are dropped.
"""

import math
from pathlib import Path
from typing import Any

from packaging.version import Version

from retrieval_server.backends.base import Hits
from retrieval_server.config import DenseSettings
from retrieval_server.corpus import Report, silent
from retrieval_server.errors import RetrievalError

EXACT = ("flat", "hnsw", "ivf_flat")  # layouts whose scores are those of the vectors
_STEP = 16384
_FEW = 3  # from this many queries on one matrix product, which reads the index once for all, beats a thread a query


def factory(settings: DenseSettings, *, dimension: int, passages: int) -> str:
    """FAISS's name of the layout."""
    lists = min(settings.lists or max(1, round(4 * math.sqrt(passages))), max(1, passages // 39))
    # A sub-quantizer of the fast scan takes half a byte, and its number must be even and divide the dimension.
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
        # FAISS prunes links to passages that another neighbour is nearer to. Where many lie around a few, it leaves few
        # links, and of 100,000 synthetic passages one in six was linked from nowhere: never found.
        graph.keep_max_size_level0 = True
    if not index.is_trained:
        report("training the index", 0, 0)
        ivf = faiss.try_extract_index_ivf(index)
        enough = min(passages, max(65536, 64 * ivf.nlist if ivf else 0))
        sample = np.linspace(0, passages - 1, enough).astype(np.int64)
        index.train(np.ascontiguousarray(vectors[sample], dtype=np.float32))
    # Before 1.15.1 FAISS linked a graph in an order that depends on time, unless one thread did it.
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


def read(path: Path) -> Any:
    """The FAISS index in a file, memory-mapped. Raises RetrievalError."""
    import faiss

    try:
        try:
            return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError:  # a layout that can not be mapped
            return faiss.read_index(str(path))
    except RuntimeError as cause:
        raise RetrievalError(
            f"{path} is no FAISS index that can be read: {cause}", remedy="copy it again, or build it again"
        ) from cause


def blas_threshold(version: str, dimension: int) -> int:
    """FAISS's `distance_compute_blas_threshold` for a search of `_FEW` queries, in the unit of that release.

    Up to 1.13 it counts queries; from 1.14 on the numbers of all queries together.
    """
    return _FEW * dimension if Version(version) >= Version("1.14") else _FEW


class FaissEngine:
    """Searches a FAISS index. `vectors` are the stored ones, for the order of the candidates; None: FAISS's order."""

    def __init__(self, index: Any, settings: DenseSettings, *, vectors: Any = None) -> None:
        import faiss

        if settings.engine == "faiss_gpu":
            index = _on_gpus(index)
        else:
            ivf = faiss.try_extract_index_ivf(index)
            if ivf is not None:
                ivf.nprobe = min(settings.probes, ivf.nlist)
            plain: Any = faiss.downcast_index(index)
            if hasattr(plain, "hnsw"):
                plain.hnsw.efSearch = settings.ef_search
        self._index = index
        self._vectors: Any = vectors if settings.candidates else None
        self._candidates = settings.candidates
        faiss.cvar.distance_compute_blas_threshold = blas_threshold(faiss.__version__, index.d)

    def search(self, queries: Any, *, topk: int) -> list[Hits]:
        """`queries`: float32 (queries, dimension). At most `topk` (row, score) each, best first."""
        import numpy as np

        wanted = topk if self._vectors is None else max(topk, self._candidates)
        scores, rows = self._index.search(np.ascontiguousarray(queries), min(wanted, self._index.ntotal))
        if self._vectors is not None:
            return [self._ranked(query, found[found >= 0], topk) for query, found in zip(queries, rows, strict=True)]
        return [
            [(int(row), float(score)) for row, score in zip(found, of, strict=True) if row >= 0][:topk]
            for found, of in zip(rows, scores, strict=True)
        ]

    def _ranked(self, query: Any, found: Any, topk: int) -> Hits:
        import numpy as np

        found = np.sort(found)  # ascending, as the file lies on the disk
        scores = self._vectors[found].astype(np.float32) @ query
        return [(int(found[at]), float(scores[at])) for at in np.argsort(-scores, kind="stable")[:topk]]


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
