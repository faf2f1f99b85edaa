"""Each kind of dense index beside exact search: recall, memory, time.

    python benchmarks/retrieval_indexes.py --passages 1000000            # minutes, 8 GB of disk in the temporary folder
    python benchmarks/retrieval_indexes.py --passages 20000 --kinds flat ivf_rabitq

Vectors and queries are synthetic; `synthetic_vectors.py` says how, and how like real ones. Each index is written,
opened again memory-mapped as the server does, and searched in one process: with the default settings, with fewer
candidates for re-ranking, and with more probes. `ram_over_flat` counts the index; the vectors for re-ranking stay on
the disk. Prints one JSON object; `--costs` writes the table that `s3-agent index plan` reads.
"""

import argparse
import datetime
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import psutil
from synthetic_vectors import Generator

from retrieval_server.backends.faiss_index import EXACT, FaissEngine, make, read
from retrieval_server.config import DenseSettings, EncoderSettings

KINDS = ("flat", "sq8", "rabitq", "pq", "ivf_flat", "ivf_sq8", "ivf_pq", "ivf_rabitq")
TOPK = 8
QUERIES = 256
FEWER_CANDIDATES, MORE_PROBES = 100, 256
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
    """Median milliseconds of a call with so many queries."""
    taken = []
    for start in range(0, len(queries) - batch + 1, batch):
        began = time.perf_counter()
        engine.search(queries[start : start + batch], topk=TOPK)
        taken.append(time.perf_counter() - began)
        if len(taken) >= 50:
            break
    return 1000 * float(np.median(taken))


def _searches(kind: str) -> list[DenseSettings]:
    """The default settings, fewer candidates, more probes: as far as the kind has them."""
    ways: list[dict[str, int]] = [{}]
    if kind not in EXACT:
        ways.append({"candidates": FEWER_CANDIDATES})
    if kind.startswith("ivf"):
        ways.append({"probes": MORE_PROBES})
    return [_SETTINGS.model_copy(update={"layout": kind, **way}) for way in ways]


def _searched(path: Path, settings: DenseSettings, queries: Any, truth: Any, *, stored: Any) -> dict[str, Any]:
    engine = FaissEngine(read(path), settings, vectors=stored)
    found = engine.search(queries, topk=TOPK)
    hit = [len({row for row, _ in hits} & set(rows)) / TOPK for hits, rows in zip(found, truth.tolist(), strict=True)]
    return {
        "probes": settings.probes if settings.layout.startswith("ivf") else None,
        "candidates": settings.candidates if stored is not None else None,
        "recall_at_8": float(np.mean(hit)),
        "latency_1_ms": round(_latency(engine, queries, 1), 2),
        "latency_64_ms": round(_latency(engine, queries, 64), 1),
    }


def _index(kind: str, vectors: Any, queries: Any, truth: Any, folder: Path) -> dict[str, Any]:
    ways = _searches(kind)
    path = folder / "index.faiss"
    began = time.perf_counter()
    faiss.write_index(make(vectors, ways[0]), str(path))
    built = time.perf_counter() - began
    stored = None if kind in EXACT else vectors
    size, flat = path.stat().st_size, 4 * vectors.size
    searches = [_searched(path, way, queries, truth, stored=stored) for way in ways]
    figures = {
        "kind": kind,
        "recall_at_8": searches[0]["recall_at_8"],
        "ram_over_flat": size / flat,
        "index_bytes": size,
        "build_s": round(built, 1),
        "searches": searches,
    }
    path.unlink()
    _log(json.dumps(figures))
    return figures


def measure(
    *, passages: int, dimension: int = 768, kinds: tuple[str, ...] = KINDS, folder: Path | None = None
) -> dict[str, Any]:
    """The table of indexes. `folder` takes the vectors and each index in turn; default: a temporary one."""
    own = folder is None
    folder = folder or Path(tempfile.mkdtemp(prefix="s3-agent-indexes-"))
    try:
        generator = Generator(dimension=dimension)
        vectors = _vectors(generator, passages, folder / "vectors.npy")
        queries = generator.queries(QUERIES, chunk=min(_STEP, passages))
        truth = _exact(vectors, queries)
        _log("vectors and exact answers are made")
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


def _costs(figures: dict[str, Any], command: str) -> dict[str, Any]:
    rows = []
    for row in figures["indexes"]:
        bytes_each = row["index_bytes"] / figures["passages"]
        # Ids of inverted lists are 8 bytes and graph links 4 each; what is left grows with the dimension.
        fixed = 8.0 if row["kind"].startswith("ivf") else 0.0
        fixed = 8.0 * _SETTINGS.hnsw_links if row["kind"] == "hnsw" else fixed
        rows.append(
            {
                "kind": row["kind"],
                "bytes_per_vector_fixed": fixed,
                "bytes_per_vector_by_dimension": round(bytes_each - fixed, 2),
                "recall_at_8": round(row["recall_at_8"], 4),
            }
        )
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    head = {"date": date, "command": command, "passages": figures["passages"], "dimension": figures["dimension"]}
    return {**head, "indexes": rows}


def main() -> None:
    """Measure, print, and write the table of costs when asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=768)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=[*KINDS, "hnsw"])
    parser.add_argument("--costs", type=Path, help="write the table for `index plan` here")
    options = parser.parse_args()
    figures = measure(passages=options.passages, dimension=options.dimension, kinds=tuple(options.kinds))
    if options.costs:
        command = f"python benchmarks/retrieval_indexes.py --passages {options.passages}"
        options.costs.write_text(json.dumps(_costs(figures, command), indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
