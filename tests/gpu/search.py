"""Exact search over as many vectors as wiki-18 has: what a search takes beside one pass over the memory.

    python -m tests.gpu.search [--small] [--seconds 170]

The floor of a search is the larger of two times: the index's bytes at the card's copy rate, and the products'
operations at its rate for fp16. Vectors are random and of unit length, made on the device; a query is a row's vector
with noise, so that its first hit is known.
"""

import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.retrieval_throughput import Passages, searches
from retrieval_server.app import create_app
from retrieval_server.app.listening import http_server
from retrieval_server.app.service import Opened
from retrieval_server.backends.dense.index import Dense
from retrieval_server.backends.dense.settings import DenseSettings, EncoderSettings
from retrieval_server.backends.dense.torch_exact import BLOCK, TorchEngine, rows_per_step
from retrieval_server.config import ServerSettings
from tests.gpu.card import copy_rate, product_rate
from tests.gpu.measuring import Measuring, begin

TOPK = 3
CLIENTS = 128
LOAD = Path(__file__).parents[2] / "benchmarks" / "retrieval_load.py"


def unit(count: int, dimension: int, device: str) -> torch.Tensor:
    """float32 (count, dimension), of unit length."""
    return torch.nn.functional.normalize(torch.randn(count, dimension, device=device), dim=1)


class Search:
    """The vectors, the engines over them and the rates that their floors come from."""

    def __init__(self, measuring: Measuring) -> None:
        self.measuring = measuring
        self.small = measuring.small
        self.passages, self.dimension = (20_000, 64) if self.small else (21_015_324, 768)
        self.copies = copy_rate(measuring)
        self.products = product_rate(measuring, torch.float32 if self.small else torch.float16)
        self.half = torch.float32 if self.small else torch.float16
        self.vectors = torch.empty(self.passages, self.dimension, dtype=self.half, device=measuring.device)
        for start in range(0, self.passages, 1 << 20):
            part = self.vectors[start : start + (1 << 20)]
            part.copy_(unit(len(part), self.dimension, measuring.device))
        self.rows = torch.randint(self.passages, (200 if self.small else 60_000,), device=measuring.device)
        near = self.vectors[self.rows].float() + 0.5 * unit(len(self.rows), self.dimension, measuring.device)
        self.queries = torch.nn.functional.normalize(near, dim=1).cpu().numpy()

    def settings(self, dtype: str, **others: Any) -> DenseSettings:
        """An engine's settings; the rehearsal's type is a CPU's."""
        named: Any = "float32" if self.small and dtype == "float16" else dtype
        encoder = EncoderSettings(model="none")
        return DenseSettings(
            encoder=encoder, engine="torch", torch_device=self.measuring.device, torch_dtype=named, **others
        )

    def floor(self, dtype: str, queries: int) -> float:
        """Seconds."""
        width = 1 if dtype == "int8" else self.vectors.element_size()
        passed = self.passages * self.dimension
        return max(width * passed / self.copies, 2 * passed * queries / self.products)

    def times(self, dtype: str, engine: TorchEngine) -> None:
        """A search of 1, 8, 64 and 512 queries, and its first stage alone."""
        for count in (1, 8, 64) if self.small else (1, 8, 64, 512):
            asked, floor = self.queries[:count], self.floor(dtype, count)
            took = self.measuring.seconds(lambda asked=asked: engine.search(asked, topk=TOPK))
            first = self.measuring.seconds(lambda asked=asked: first_stage(engine, asked))
            self.measuring.say(
                "search",
                dtype=dtype,
                queries=count,
                ms=1e3 * took,
                queries_per_s=count / took,
                floor_ms=1e3 * floor,
                share_of_floor=floor / took,
                first_stage_ms=1e3 * first,
                first_stage_share=floor / first,
            )

    def equality(self, dtype: str, engine: TorchEngine) -> None:
        """Its hits beside those of products in fp32 over all vectors as they are given to the engine."""
        asked = torch.as_tensor(self.queries[:16], device=self.measuring.device)
        best = torch.full((len(asked), 0), 0.0, device=asked.device)
        rows = torch.zeros((len(asked), 0), dtype=torch.long, device=asked.device)
        for start in range(0, self.passages, 1 << 19):
            scores = asked @ self.vectors[start : start + (1 << 19)].float().T
            values, at = scores.topk(TOPK, dim=1)
            best, rows = torch.cat((best, values), dim=1), torch.cat((rows, at + start), dim=1)
            best, at = best.topk(TOPK, dim=1)
            rows = rows.gather(1, at)
        hits = engine.search(self.queries[: len(asked)], topk=TOPK)
        found = np.array([[row for row, _ in of] for of in hits])
        wanted = rows.cpu().numpy()
        shared = [len(set(a) & set(b)) / TOPK for a, b in zip(found.tolist(), wanted.tolist(), strict=True)]
        differ = np.abs(np.array([[score for _, score in of] for of in hits]) - best.cpu().numpy())
        self.measuring.say(
            "equality",
            dtype=dtype,
            queries=len(asked),
            recall=float(np.mean(shared)),
            known_first=float(np.mean(found[:, 0] == self.rows[: len(asked)].cpu().numpy())),
            largest_difference=float(differ.max()),
        )

    def steps(self) -> None:
        """The first stage with other steps than the rule's, and the parts of the rule's step."""
        for count in (1, 64):
            asked = self.queries[:count]
            for chunk in (1 << 10, 1 << 12) if self.small else (1 << 16, 1 << 17, 1 << 18, 1 << 20):
                engine = TorchEngine(self.vectors, self.settings("float16", chunk=chunk))
                took = self.measuring.seconds(lambda engine=engine, asked=asked: first_stage(engine, asked))
                ruled = chunk == rows_per_step(self.settings("float16"), count)
                self.measuring.say("steps", queries=count, chunk=chunk, by_rule=ruled, first_stage_ms=1e3 * took)
        queries = torch.as_tensor(self.queries[:64]).to(self.measuring.device, self.half)
        chunk = min(self.passages // 128 * 128, rows_per_step(self.settings("float16"), 64))
        part = self.vectors[:chunk]
        scores = queries @ part.T
        apart, together = scores.unflatten(1, (BLOCK, -1)), scores.unflatten(1, (-1, 128))
        rows_first = part @ queries.T
        maxima = torch.empty(64, -(-self.passages // BLOCK), dtype=self.half, device=self.measuring.device)
        maxima.normal_()
        pieces = {
            "product": lambda: queries @ part.T,
            "product_rows_first": lambda: part @ queries.T,
            "maximum": lambda: apart.amax(dim=1),
            "maximum_of_neighbours": lambda: together.amax(dim=2),
            "maximum_rows_first": lambda: rows_first.unflatten(0, (BLOCK, -1)).amax(dim=0),
            "best_blocks": lambda: maxima.topk(TOPK + 8, dim=1),
        }
        took = {f"{name}_us": 1e6 * self.measuring.seconds(work, repeats=20) for name, work in pieces.items()}
        floor = part.numel() * part.element_size() / self.copies
        self.measuring.say("pieces", queries=64, chunk=chunk, product_floor_us=1e6 * floor, **took)

    def kernel(self, engines: dict[str, TorchEngine]) -> None:
        """The candidate for the first stage in one kernel, and whether it finds the same maxima."""
        if self.small:
            self.measuring.say("kernel", skipped="Triton compiles for GPUs alone")
            return
        from tests.gpu.search_kernel import block_best

        for dtype, engine in engines.items():
            for count in (1, 8, 64):
                asked = torch.as_tensor(self.queries[:count]).to(self.measuring.device, torch.float16)
                try:
                    took = self.measuring.seconds(
                        lambda engine=engine, asked=asked: block_best(asked, engine._vectors, engine._scales)
                    )
                    part = engine._vectors[-100_000:]
                    scales = None if engine._scales is None else engine._scales[-100_000:]
                    best = block_best(asked, part, scales)
                except Exception as failed:  # a compiler's errors have no common class
                    self.measuring.say("kernel", dtype=dtype, queries=count, failed=repr(failed)[:500])
                    continue
                scores = asked.float() @ part.float().T
                if scales is not None:
                    scores *= scales
                blocks = torch.nn.functional.pad(scores, (0, -len(part) % 128), value=float("-inf"))
                differ = (best - blocks.unflatten(1, (-1, 128)).amax(dim=2)).abs().max()
                floor = self.floor(dtype, count)
                figures = {"ms": 1e3 * took, "floor_ms": 1e3 * floor, "share_of_floor": floor / took}
                self.measuring.say("kernel", dtype=dtype, queries=count, **figures, largest_difference=float(differ))

    def http(self, engine: TorchEngine) -> None:
        """128 clients on loopback, each with one query at a time, against the same engine called directly."""
        settings, seconds = self.settings("float16"), 0.5 if self.small else 6.0
        direct = {
            size: size / self.measuring.seconds(lambda size=size: engine.search(self.queries[:size], topk=TOPK))
            for size in (CLIENTS, 512)
        }
        known = self.rows.tolist()
        whole = Dense(Table(self.queries), engine, settings)
        with tempfile.TemporaryDirectory() as folder:
            answers = Path(folder) / "queries.json"
            answers.write_text(json.dumps([[str(query), str(row)] for query, row in enumerate(known)]))
            for name, backend in (("http", whole), ("http_without_search", Instant(known))):
                with served(backend) as port:
                    figures = load(answers, port=port, seconds=seconds)
                    count, queries, busy = searches(port)
                figures |= {"queries_a_search": queries / count, "seconds_searching": busy}
                self.measuring.say(
                    name,
                    clients=CLIENTS,
                    **figures,
                    in_process_per_s=direct[CLIENTS],
                    in_process_512_per_s=direct[512],
                    share_of_in_process=figures["per_second"] / direct[CLIENTS],
                )


def first_stage(engine: TorchEngine, asked: Any) -> Any:
    """The best scores of all blocks."""
    with torch.inference_mode():
        queries = torch.as_tensor(asked).to(engine._device, engine._compute)
        return engine._block_scores(queries, rows_per_step(engine._settings, len(queries)))


class Table:
    """Stands for the encoder: the query `42` has the vector of number 42."""

    def __init__(self, vectors: Any) -> None:
        self._vectors = vectors

    def queries(self, texts: Sequence[str]) -> Any:
        """float32 (texts, dimension)."""
        return self._vectors[[int(text) for text in texts]]


class Instant:
    """Stands for the index: knows the hits beforehand, so that what is left is HTTP."""

    ignores_whitespace = False

    def __init__(self, known: list[int]) -> None:
        self._known = known

    def search(self, queries: Sequence[str], *, topk: int) -> list[list[tuple[int, float]]]:
        """The known row, and its neighbours."""
        return [[((self._known[int(text)] + more), 1.0 - more / 10) for more in range(topk)] for text in queries]

    def cost(self, query: str) -> int:
        """As little as can be."""
        return 1


@contextmanager
def served(backend: Any) -> Iterator[int]:
    """Our server over this process's backend, in a thread; its port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    settings = ServerSettings(corpus=Path("none"), index=Path("none"), port=port)
    manifest = {"backend": "table", "corpus": "none", "passages": 0, "settings": {}}
    app = create_app(settings, opens=lambda _: Opened(Passages(), backend, manifest))
    server = http_server(app, settings)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1).read()
            break
        except OSError:
            assert time.monotonic() < end, "the server did not start"
            time.sleep(0.02)
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join(timeout=30)


def load(answers: Path, *, port: int, seconds: float) -> dict[str, Any]:
    """The load generator's figures."""
    limits = ["--port", str(port), "--clients", str(CLIENTS), "--seconds", str(seconds), "--topk", str(TOPK)]
    command = [sys.executable, str(LOAD), *limits, "--queries", str(answers)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=120)
    return json.loads(done.stdout)


def main() -> None:
    """Measure and print."""
    measuring, _ = begin("search")
    search = Search(measuring)
    bytes_of = search.vectors.numel() * search.vectors.element_size()
    measuring.say("index", passages=search.passages, dimension=search.dimension, bytes=bytes_of)
    engine = TorchEngine(search.vectors, search.settings("float16"))
    search.times("float16", engine)
    search.equality("float16", engine)
    search.http(engine)
    if measuring.enough(25, "steps"):
        search.steps()
    if measuring.enough(30, "int8"):
        compressed = TorchEngine(search.vectors, search.settings("int8"))
        search.equality("int8", compressed)
        search.kernel({"float16": engine, "int8": compressed})
        search.times("int8", compressed)


if __name__ == "__main__":
    main()
