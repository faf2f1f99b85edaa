"""Measures the retrieval server over exact search with 128 concurrent single-query clients.

Four ways to answer the same queries from the same index file, measured in turns in one process tree:

- limit: the backend called in this process with large batches, no HTTP;
- batched: our server as shipped, in a separate process;
- unbatched: the same server without batching and cache;
- threads: the design of the originals, a synchronous endpoint that searches each request separately in a thread pool.

The load generator is a separate process on the same cores. No query is sent twice, so no cache helps. A table of
vectors encodes the queries, so that only search and HTTP are measured; encoders are measured separately.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

DIMENSION = 768
TOPK = 3
LARGE_BATCH = 512
MODES = ("batched", "unbatched", "threads")


@dataclass(frozen=True)
class Material:
    """The files that all processes share."""

    folder: Path

    @property
    def index(self) -> Path:
        return self.folder / "flat.index"

    @property
    def queries(self) -> Path:
        return self.folder / "queries.npy"

    @property
    def answers(self) -> Path:
        return self.folder / "queries.json"


class Table:
    """Replaces the encoder: the query `42` has the vector of row 42."""

    def __init__(self, material: Material) -> None:
        self._vectors = np.load(material.queries, mmap_mode="r")

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        return self._vectors[[int(text) for text in texts]]


def open_backend(material: Material) -> Any:
    """Our dense backend over the flat FAISS index, a memory map: the processes share one copy of the vectors."""
    from retrieval_server.backends.dense.faiss_index import FaissEngine, read
    from retrieval_server.backends.dense.index import Dense
    from retrieval_server.backends.dense.settings import DenseSettings, EncoderSettings

    settings = DenseSettings(encoder=EncoderSettings(model="table"), layout="flat")
    return Dense(Table(material), FaissEngine(read(material.index), settings), settings)


class Passages:
    """A passage of typical length for any row."""

    def __len__(self) -> int:
        raise NotImplementedError("the benchmark only searches")

    def row_of(self, name: str) -> int | None:
        raise NotImplementedError("the benchmark only searches")

    def __getitem__(self, row: int) -> Any:
        from retrieval_server.schemas import Document

        text = "A sentence about the matter at hand. " * 16
        return Document(id=str(row), title=f"Title {row}", text=text, contents=f'"Title {row}"\n{text}')


def make_material(folder: Path, *, passages: int, queries: int) -> Material:
    """Random unit vectors: exact search does the same work for any vectors.

    Query `i` is a passage's vector with noise, cosine about 0.9; all other cosines are near 0, so its first hit is
    known.
    """
    import faiss

    material = Material(folder)
    draw = np.random.default_rng(5)

    def unit(count: int) -> np.ndarray:
        vectors = draw.standard_normal((count, DIMENSION), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    index = faiss.IndexFlatIP(DIMENSION)
    for begin in range(0, passages, 65536):
        index.add(unit(min(65536, passages - begin)))
    faiss.write_index(index, str(material.index))
    rows = draw.integers(passages, size=queries)
    near = index.reconstruct_batch(rows) + 0.5 * unit(queries)
    np.save(material.queries, near / np.linalg.norm(near, axis=1, keepdims=True))
    answers = [[str(query), str(row)] for query, row in enumerate(rows.tolist())]
    material.answers.write_text(json.dumps(answers), encoding="utf-8")
    return material


def serve(material: Material, *, mode: str, port: int) -> None:
    """Serve in this process until stopped."""
    import uvicorn

    from retrieval_server.app import create_app
    from retrieval_server.app.command import collect_less
    from retrieval_server.app.listening import http_server
    from retrieval_server.app.service import Opened
    from retrieval_server.config import ServerSettings

    if mode == "threads":
        uvicorn.run(original_shape(open_backend(material)), port=port, log_level="warning", access_log=False)
        return
    off: dict[str, Any] = {} if mode == "batched" else {"max_batch_queries": 1, "cache_mb": 0}
    settings = ServerSettings(corpus=Path("none"), index=Path("none"), port=port, **off)
    manifest = {"backend": "table", "corpus": "none", "passages": 0, "settings": {}}
    app = create_app(
        settings, opens=lambda _: Opened(Passages(), open_backend(material), manifest), on_ready=collect_less
    )
    http_server(app, settings).run()


def original_shape(backend: Any) -> Any:
    """A synchronous endpoint with one search per request, like the servers of Search-R1 and s3."""
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Request(BaseModel):
        queries: list[str]
        topk: int | None = None
        return_scores: bool = False

    app, passages = FastAPI(), Passages()

    @app.post("/retrieve")
    def retrieve(request: Request) -> dict[str, Any]:
        found = backend.search(request.queries, topk=request.topk or TOPK)
        hits = [[{"document": passages[row].model_dump(), "score": score} for row, score in hits] for hits in found]
        return {"result": hits}

    @app.get("/readyz")
    def readyz() -> dict[str, str]:
        return {"status": "ready"}

    return app


@contextmanager
def running(command: Sequence[str], *, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server process of this code; the block starts when it is ready."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    process = subprocess.Popen(command, env=environment)
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None and time.monotonic() < deadline, f"the server did not start: {command}"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1).read()
                break
            except OSError:
                time.sleep(0.02)
        yield process
    finally:
        process.terminate()
        process.wait(timeout=60)


@contextmanager
def server(folder: Path, *, mode: str, port: int) -> Iterator[int]:
    """A server over the files in `folder`; yields its port."""
    command = [sys.executable, __file__, "--serve", mode, "--port", str(port), "--folder", str(folder)]
    with running(command, port=port):
        yield port


class Queries:
    """Hands out queries that were not sent yet."""

    def __init__(self, material: Material, count: int) -> None:
        self._answers = material.answers
        self._count = count
        self._next = 0

    def take(self, count: int) -> list[str]:
        begin, self._next = self._next, self._next + count
        assert self._next <= self._count, "ask for more --queries"
        return [str(row) for row in range(begin, self._next)]

    def load(self, *, port: int, clients: int, seconds: float) -> dict[str, Any]:
        """The load generator's figures."""
        command = [sys.executable, str(Path(__file__).with_name("retrieval_load.py")), "--port", str(port)]
        limits = ["--clients", str(clients), "--seconds", str(seconds), "--topk", str(TOPK)]
        where = ["--queries", str(self._answers), "--first", str(self._next)]
        ended = subprocess.run([*command, *limits, *where], check=True, stdout=subprocess.PIPE, text=True)
        figures = json.loads(ended.stdout)
        self.take(figures["answers"])
        assert not figures["wrong"] and not figures["exhausted"], figures
        return figures


def in_process(backend: Any, queries: Queries, *, batch: int, seconds: float) -> dict[str, float]:
    """The backend called directly, for at least `seconds`."""
    spans: list[float] = []
    while sum(spans) < seconds:
        taken = queries.take(batch)
        begin = time.perf_counter()
        backend.search(taken, topk=TOPK)
        spans.append(time.perf_counter() - begin)
    return {"per_second": batch * len(spans) / sum(spans), "p50_s": statistics.median(spans)}


def watched(measured: Callable[[], dict[str, Any]], *, port: int) -> dict[str, Any]:
    """The result of `measured`, with the batched server's searches and the CPU time of other programs meanwhile."""
    began, searched, begin = busy(), searches(port), time.perf_counter()
    figures = measured()
    ours, all_of_it = (after - before for before, after in zip(began, busy(), strict=True))
    took = time.perf_counter() - begin
    count, queries, seconds = (after - before for before, after in zip(searched, searches(port), strict=True))
    figures["others_share"] = max(0.0, all_of_it - ours) / (took * (os.cpu_count() or 1))
    if count:
        figures |= {"queries_a_search": queries / count, "share_of_time_searching": seconds / took}
    return figures


def busy() -> tuple[float, float]:
    """CPU seconds of our process tree, and of the whole machine."""
    tree = [psutil.Process(), *psutil.Process().children(recursive=True)]
    own = [process.cpu_times() for process in tree]
    whole = psutil.cpu_times()
    mine = sum(of.user + of.system for of in own) + own[0].children_user + own[0].children_system
    return mine, sum(whole) - whole.idle - whole.iowait


def searches(port: int) -> tuple[float, float, float]:
    """The server's searches so far: how many, of how many queries, in how many seconds."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    names = ("retrieval_search_seconds_count", "retrieval_batch_queries_sum", "retrieval_search_seconds_sum")
    return float(values[names[0]]), float(values[names[1]]), float(values[names[2]])


def measure(*, passages: int, clients: int, seconds: float, rounds: int, folder: Path) -> dict[str, Any]:
    """All figures. Each round measures every way in turn; the best round of each way counts, since other programs can
    only make a round slower. `others_share` is the share of the machine that they used meanwhile.
    """
    count = int(4e8 / passages * rounds * (seconds * 4 + 20)) + 8 * LARGE_BATCH * rounds
    material = make_material(folder, passages=passages, queries=count)
    backend = open_backend(material)
    queries = Queries(material, count)
    turns: list[dict[str, Any]] = []
    with ExitStack() as stack:
        ports = {mode: stack.enter_context(server(folder, mode=mode, port=free_port())) for mode in MODES}
        for port in ports.values():
            queries.load(port=port, clients=4, seconds=1)
        for _ in range(rounds):
            ways: dict[str, Callable[[], dict[str, Any]]] = {
                "limit": lambda: in_process(backend, queries, batch=LARGE_BATCH, seconds=seconds),
                "batched": lambda: queries.load(port=ports["batched"], clients=clients, seconds=seconds),
                "limit_same_batch": lambda: in_process(backend, queries, batch=clients, seconds=seconds),
                "bare_call": lambda: in_process(backend, queries, batch=1, seconds=seconds / 2),
                "one_client": lambda: queries.load(port=ports["batched"], clients=1, seconds=seconds / 2),
                "unbatched": lambda: queries.load(port=ports["unbatched"], clients=clients, seconds=seconds),
                "threads": lambda: queries.load(port=ports["threads"], clients=clients, seconds=seconds),
            }
            turns.append({way: watched(measured, port=ports["batched"]) for way, measured in ways.items()})
            print(json.dumps(turns[-1]), file=sys.stderr)

    best = {way: max((turn[way] for turn in turns), key=lambda figures: figures["per_second"]) for way in turns[0]}
    fastest = {way: min(turn[way]["p50_s"] for turn in turns) for way in ("one_client", "bare_call")}

    def ratio(above: str, below: str) -> float:
        return best[above]["per_second"] / best[below]["per_second"]

    return {
        "passages": passages,
        "clients": clients,
        "batched_over_unbatched": ratio("batched", "unbatched"),
        "batched_over_threads": ratio("batched", "threads"),
        "share_of_limit": ratio("batched", "limit"),
        "share_of_limit_with_batches_of_as_many": ratio("batched", "limit_same_batch"),
        "one_client_over_bare_call": fastest["one_client"] / fastest["bare_call"],
        "p99_s": {mode: best[mode]["p99_s"] for mode in MODES},
        "rounds": turns,
    }


def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Throughput of the retrieval server against its limits.")
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(Material(options.folder), mode=options.serve, port=options.port)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers are stopped
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(
            passages=options.passages,
            clients=options.clients,
            seconds=options.seconds,
            rounds=options.rounds,
            folder=Path(folder),
        )
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
