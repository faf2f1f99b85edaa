"""Measures each kind of dense index against exact search: recall, memory, time.

    python benchmarks/retrieval_indexes.py --passages 1000000            # minutes, 8 GB of disk in the temporary folder
    python benchmarks/retrieval_indexes.py --passages 20000 --kinds flat ivf_rabitq

Vectors and queries are synthetic; `synthetic_vectors.py` describes how they are made and how they compare with real
ones. Each index is written, opened again memory-mapped as in the server, and searched in one process, with the default
settings and with more probes. `ram_over_flat` counts only the index; the vectors for re-ranking stay on the disk.
`by_candidates` is the recall by number of re-ranked candidates, for all passages and for the first sixteenth; `s3-agent
index plan` extrapolates from both to more passages. Prints one JSON object; `--costs` writes the measured kinds into
the table that `plan` reads.
"""

import argparse
import datetime
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import psutil
from synthetic_vectors import Generator

from retrieval_server.backends.base import Hits
from retrieval_server.backends.dense.faiss_index import FaissEngine, make, read
from retrieval_server.backends.dense.settings import COMPRESSED, DenseSettings, EncoderSettings

KINDS = ("flat", "hnsw", "sq8", "rabitq", "pq", "ivf_flat", "ivf_sq8", "ivf_pq", "ivf_rabitq")
QUICK = tuple(kind for kind in KINDS if kind != "hnsw")  # built by one thread, so it is measured only on request
TOPK = 8
QUERIES = 256
MORE_PROBES = 256
CANDIDATES = (1, 2, 4, 8, 16, 32, 64, 100, 200, 400, 1000, 2000)
FEWER = 16  # recall by candidates is also measured with this many times fewer passages
_STEP = 16384
_SETTINGS = DenseSettings(encoder=EncoderSettings(model="none"))


def _log(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")


def _vectors(generator: Generator, passages: int, path: Path) -> Any:
    stored = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(passages, generator.dimension))
    for start in range(0, passages, _STEP):
        stored[start : start + _STEP] = generator.rows(start, min(_STEP, passages - start))
    stored.flush()
    return np.load(path, mmap_mode="r")


def _exact(vectors: Any, queries: Any) -> Any:
    """The rows of the first TOPK by numpy, a chunk at a time."""
    best_scores, best_rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for start in range(0, len(vectors), _STEP):
        scores = queries @ vectors[start : start + _STEP].astype(np.float32).T
        rows = np.broadcast_to(np.arange(start, start + scores.shape[1]), scores.shape)
        best_scores, best_rows = np.hstack((best_scores, scores)), np.hstack((best_rows, rows))
        order = np.argsort(-best_scores, axis=1, kind="stable")[:, :TOPK]
        best_scores, best_rows = (np.take_along_axis(each, order, axis=1) for each in (best_scores, best_rows))
    return best_rows


def _latency(engine: FaissEngine, queries: Any, batch: int) -> float:
    """Median milliseconds of a call with a given number of queries."""
    taken = []
    for start in range(0, len(queries) - batch + 1, batch):
        began = time.perf_counter()
        engine.search(queries[start : start + batch], topk=TOPK)
        taken.append(time.perf_counter() - began)
        if len(taken) >= 50:
            break
    return 1000 * float(np.median(taken))


def _searches(kind: str) -> list[DenseSettings]:
    """The default settings, and more probes if the kind has them."""
    default = _SETTINGS.model_copy(update={"layout": kind})
    return [default, default.model_copy(update={"probes": MORE_PROBES})] if kind.startswith("ivf") else [default]


def _recall(found: list[Hits], truth: Any) -> float:
    hit = [len({row for row, _ in hits} & set(rows)) / TOPK for hits, rows in zip(found, truth.tolist(), strict=True)]
    return float(np.mean(hit))


def _searched(path: Path, settings: DenseSettings, queries: Any, truth: Any, *, stored: Any) -> dict[str, Any]:
    engine = FaissEngine(read(path), settings, vectors=stored)
    return {
        "probes": settings.probes if settings.layout.startswith("ivf") else None,
        "candidates": settings.candidates if stored is not None else None,
        "recall_at_8": _recall(engine.search(queries, topk=TOPK), truth),
        "latency_1_ms": round(_latency(engine, queries, 1), 2),
        "latency_64_ms": round(_latency(engine, queries, 64), 1),
    }


def _by_candidates(index: Any, settings: DenseSettings, queries: Any, truth: Any) -> dict[int, float]:
    """The share of the true TOPK among the candidates, by their number: the recall after re-ranking."""
    found = FaissEngine(index, settings).search(queries, topk=CANDIDATES[-1])
    return {count: round(_recall([hits[:count] for hits in found], truth), 4) for count in CANDIDATES}


def _index(kind: str, vectors: Any, queries: Any, truth: Any, folder: Path) -> dict[str, Any]:
    ways = _searches(kind)
    path = folder / "index.faiss"
    began = time.perf_counter()
    faiss.write_index(make(vectors, ways[0]), str(path))
    built = time.perf_counter() - began
    stored = vectors if kind in COMPRESSED else None
    size, flat = path.stat().st_size, 4 * vectors.size
    searches = [_searched(path, way, queries, truth, stored=stored) for way in ways]
    by_candidates = {}
    if stored is not None:
        few = vectors[: len(vectors) // FEWER]
        by_candidates = {
            len(few): _by_candidates(make(few, ways[0]), ways[0], queries, _exact(few, queries)),
            len(vectors): _by_candidates(read(path), ways[0], queries, truth),
        }
    figures = {
        "kind": kind,
        "recall_at_8": searches[0]["recall_at_8"],
        "ram_over_flat": size / flat,
        "index_bytes": size,
        "build_s": round(built, 1),
        "searches": searches,
        "by_candidates": by_candidates,
    }
    path.unlink()
    _log(json.dumps(figures))
    return figures


def measure(
    *, passages: int, dimension: int = 768, kinds: Iterable[str] = QUICK, folder: Path | None = None
) -> dict[str, Any]:
    """The table of indexes. `folder` holds the vectors and, in turn, each index; default: a temporary one."""
    own = folder is None
    folder = folder or Path(tempfile.mkdtemp(prefix="s3-agent-indexes-"))
    try:
        generator = Generator(dimension=dimension)
        vectors = _vectors(generator, passages, folder / "vectors.npy")
        queries = generator.queries(QUERIES, chunk=min(_STEP, passages))
        truth = _exact(vectors, queries)
        _log("vectors and exact answers are ready")
        indexes = [_index(kind, vectors, queries, truth, folder) for kind in kinds]
    finally:
        if own:
            shutil.rmtree(folder)
    small = [way["recall_at_8"] for row in indexes if row["ram_over_flat"] <= 1 / 8 for way in row["searches"]]
    return {
        "passages": passages,
        "dimension": dimension,
        "queries": QUERIES,
        "cores": psutil.cpu_count(),
        "faiss": faiss.__version__,
        "best_recall_at_an_eighth": max(small, default=None),
        "indexes": indexes,
    }


def _cost(row: dict[str, Any], passages: int) -> dict[str, Any]:
    # Ids of inverted lists take 8 bytes and graph links 4 each; the rest grows with the dimension.
    fixed = 8.0 if row["kind"].startswith("ivf") else 0.0
    fixed = 8.0 * _SETTINGS.hnsw_links if row["kind"] == "hnsw" else fixed
    return {
        "kind": row["kind"],
        "bytes_per_vector_fixed": fixed,
        "bytes_per_vector_by_dimension": round(row["index_bytes"] / passages - fixed, 2),
        "recall_at_8": round(row["recall_at_8"], 4),
        "by_candidates": row["by_candidates"],
    }


def _save_costs(figures: dict[str, Any], path: Path) -> None:
    """Write the rows next to those of other kinds measured with equally many vectors, in the order of KINDS."""
    head = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": f"python benchmarks/retrieval_indexes.py --passages {figures['passages']}",
        "passages": figures["passages"],
        "dimension": figures["dimension"],
    }
    rows = {row["kind"]: _cost(row, figures["passages"]) for row in figures["indexes"]}
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if (before.get("passages"), before.get("dimension")) == (head["passages"], head["dimension"]):
        rows = {row["kind"]: row for row in before["indexes"]} | rows
    indexes = [rows[kind] for kind in KINDS if kind in rows]
    path.write_text(json.dumps({**head, "indexes": indexes}, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Measure, print, and write the table of costs on request."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=768)
    parser.add_argument("--kinds", nargs="+", default=QUICK, choices=KINDS)
    parser.add_argument("--costs", type=Path, help="write the table for `index plan` here")
    options = parser.parse_args()
    figures = measure(passages=options.passages, dimension=options.dimension, kinds=options.kinds)
    if options.costs:
        _save_costs(figures, options.costs)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
