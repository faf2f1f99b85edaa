"""Compares the engines of BM25 with each other, and with Lucene where Java is available, on generated passages.

    uv pip install --no-deps --target /tmp/pyserini pyserini==0.22.1      # Anserini's jar is inside; Java 17
    python benchmarks/retrieval_bm25.py --jar /tmp/pyserini/pyserini/resources/jars/*.jar

Passages have 100 words, and queries 8 words of a passage; words follow Zipf's law among a million. Each engine builds
its index in a process tree of its own, answers queries one at a time on one thread in a process, and then 128 clients
through a server: ours for our engines, without cache, and for Lucene a small one in Java whose answers hold ids only.
Rounds of all servers alternate; the best of each counts, since other programs can only make a round slower.

Prints one JSON object. For each size: `over_lucene_128`, `over_today` and `over_today_128` compare queries per second
of block_max with Lucene's at 128 clients, and with bm25s's on one thread and at 128 clients; `index_over_today`,
`build_over_today` and `build_cpu_over_today` compare bytes, seconds, and CPU seconds of building with bm25s's;
`build_peak_mb` is the largest sum of anonymous memory (in RAM or swapped out) of all processes of block_max's build,
and `build_peak_over_plan` compares it with the limit that `index plan` states; `top10_overlap` is the mean share of
Lucene's first ten that block_max finds, where rows tied with its tenth count as found. `others_share` is the share of
the machine that other programs used meanwhile. Sizes are 1M and 5M passages unless `--sizes` names others. `--without
bm25s` leaves out an engine that the memory does not suffice for. `--folder` keeps corpora and indexes for another run.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from retrieval_server.backends.bm25.block_max.memory import build_bytes, processes
from retrieval_server.backends.bm25.engines import ENGINES
from retrieval_server.backends.bm25.settings import Bm25Settings
from retrieval_server.corpus import Corpus

WORDS = 1_000_000
CLIENTS, TOPK, TIMED = 128, 8, 300
SECONDS, ROUNDS = 10.0, 2
_JAVA = Path(__file__).with_name("LuceneServer.java")


def generate(folder: Path, passages: int) -> None:
    """Write the corpus, and queries: the first TIMED for one thread, the others for the clients."""
    chance = np.random.default_rng(0)
    shares = np.cumsum(1 / np.arange(1, WORDS + 1))
    names = [f"w{number}" for number in range(WORDS)]
    queries = []
    count = TIMED + int(3000 * SECONDS)
    with (folder / "corpus.partial").open("w") as file:
        for start in range(0, passages, 10_000):
            some = min(10_000, passages - start)
            words = np.searchsorted(shares, chance.random((some, 100)) * shares[-1]).tolist()
            for row, of_one in enumerate(words, start):
                file.write(f'{{"id": "{row}", "contents": "{" ".join(map(names.__getitem__, of_one))}"}}\n')
            for of_one in chance.integers(some, size=-(-count * some // passages)):
                queries.append(" ".join(names[word] for word in chance.choice(words[of_one], 8, replace=False)))
    chance.shuffle(queries)
    (folder / "timed.json").write_text(json.dumps(queries[:TIMED]))
    (folder / "queries.json").write_text(json.dumps([(query, "") for query in queries[TIMED:]]))
    (folder / "corpus.partial").rename(folder / "corpus.jsonl")


def _tree(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _anonymous_mb(process: psutil.Process) -> float:
    text = Path(f"/proc/{process.pid}/status").read_text()
    return sum(int(line.split()[1]) / 1e3 for line in text.splitlines() if line.startswith(("RssAnon", "VmSwap")))


def watched(command: Sequence[str]) -> dict[str, float]:
    """Seconds, CPU seconds and the largest anonymous memory of a command with all of its processes."""
    begin, before, peak = time.monotonic(), os.times(), 0.0
    running = psutil.Popen(command, stdout=subprocess.DEVNULL)
    while running.poll() is None:
        held = 0.0
        for process in _tree(running):
            try:
                held += _anonymous_mb(process)
            except (OSError, psutil.Error):  # it has ended meanwhile
                continue
        peak = max(peak, held)
        time.sleep(0.1)
    if running.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {running.returncode}")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"build_s": time.monotonic() - begin, "build_cpu_s": cpu, "build_peak_mb": peak}


def in_python(code: str, *arguments: str) -> list[str]:
    """The command of one function of this file in a fresh process."""
    return [sys.executable, str(Path(__file__)), "--call", code, *arguments]


def build_ours(folder: str, engine: str) -> None:
    from retrieval_server.indexing import build_index

    place = Path(folder)
    build_index(Corpus(place / "corpus.jsonl"), place / engine, Bm25Settings.model_validate({"engine": engine}))


def time_ours(folder: str, engine: str) -> None:
    """Print the milliseconds of each query on one thread, and all rows that may tie with the tenth."""
    from retrieval_server.indexing import load_index, open_corpus

    place = Path(folder)
    backend = load_index(open_corpus(place / "corpus.jsonl", place / engine), place / engine)
    queries = json.loads((place / "timed.json").read_text())
    hits: list[list[int]] = []
    for found in backend.search(queries, topk=1000):
        least = found[min(10, len(found)) - 1][1] * (1 - 1e-4) if found else 0.0
        hits.append([row for row, score in found if score >= least])
    times = []
    for query in queries:
        begin = time.perf_counter()
        backend.search([query], topk=TOPK)
        times.append((time.perf_counter() - begin) * 1e3)
    print(json.dumps({"ms": times, "hits": hits}))


def _free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def served(command: Callable[[int], Sequence[str]]) -> Iterator[int]:
    """The port of a ready server."""
    port = _free_port()
    process = subprocess.Popen(command(port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz").read()
                break
            except OSError:
                assert process.poll() is None, f"the server ended with {process.returncode}"
                time.sleep(0.5)
        yield port
    finally:
        process.terminate()
        process.wait()


def load(port: int, folder: Path, seconds: float) -> dict[str, Any]:
    """What CLIENTS clients get of a server."""
    command = [sys.executable, str(Path(__file__).with_name("retrieval_load.py")), "--port", str(port)]
    options = ["--clients", str(CLIENTS), "--seconds", str(seconds), "--topk", str(TOPK)]
    where = ["--queries", str(folder / "queries.json")]
    done = subprocess.run([*command, *options, *where], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


class Ways:
    """How each engine is built, timed and served over one corpus."""

    def __init__(self, folder: Path, jar: Path | None, without: Sequence[str]) -> None:
        self.folder = folder
        self.names = [name for name in (*ENGINES, *(["lucene"] if jar else [])) if name not in without]
        self._java = ["java", "-cp", str(jar), str(_JAVA)]
        settings = Bm25Settings()
        self._where = [str(folder / "lucene"), str(settings.k1), str(settings.b)]

    def building(self, name: str) -> list[str]:
        if name == "lucene":
            return [*self._java, "build", str(self.folder / "corpus.jsonl"), *self._where]
        return in_python("build_ours", str(self.folder), name)

    def timing(self, name: str) -> list[str]:
        if name == "lucene":
            return [*self._java, "time", str(self.folder / "timed.json"), *self._where, "10"]
        return in_python("time_ours", str(self.folder), name)

    def serving(self, name: str) -> Callable[[int], list[str]]:
        if name == "lucene":
            return lambda port: [*self._java, "serve", str(port), *self._where, str(TOPK)]
        where = ["--corpus", str(self.folder / "corpus.jsonl"), "--index", str(self.folder / name)]
        options = ["--topk", str(TOPK), "--cache-mb", "0"]
        return lambda port: [sys.executable, "-m", "retrieval_server", *where, *options, "--port", str(port)]


def measure(folder: Path, passages: int, jar: Path | None, without: Sequence[str]) -> dict[str, Any]:
    """The figures of one size."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "corpus.jsonl").exists():
        print(f"generating {passages} passages", file=sys.stderr)
        generate(folder, passages)
    ways = Ways(folder, jar, without)
    figures: dict[str, Any] = {}
    hits: dict[str, list[list[int]]] = {}
    for name in ways.names:
        kept = folder / f"{name}.build.json"
        if not kept.exists():
            print(f"building {name}", file=sys.stderr)
            shutil.rmtree(folder / name, ignore_errors=True)
            kept.write_text(json.dumps(watched(ways.building(name))))
        files = [path for path in (folder / name).iterdir() if not path.name.startswith("corpus.")]
        figures[name] = {**json.loads(kept.read_text()), "index_bytes": sum(path.stat().st_size for path in files)}
    for turn in range(ROUNDS):
        for name in ways.names:
            print(f"timing {name}", file=sys.stderr)
            done = subprocess.run(ways.timing(name), check=True, stdout=subprocess.PIPE, text=True)
            answer = json.loads(done.stdout)
            hits[name] = answer["hits"]
            cuts = statistics.quantiles(answer["ms"], n=100)
            one = {"per_second_1": 1e3 / statistics.mean(answer["ms"]), "p50_ms": cuts[49], "p95_ms": cuts[94]}
            print(f"serving {name}", file=sys.stderr)
            with served(ways.serving(name)) as port:
                load(port, folder, SECONDS / 2)  # Java compiles, pages are read
                many = load(port, folder, SECONDS)
            assert not many["exhausted"], many
            one |= {
                "per_second_128": many["per_second"],
                "p50_ms_128": 1e3 * many["p50_s"],
                "p95_ms_128": 1e3 * many["p95_s"],
                "p99_ms_128": 1e3 * many["p99_s"],
            }
            for key, value in one.items():
                better = max if key.startswith("per") else min
                figures[name][key] = better(value, figures[name].get(key, value)) if turn else value
    new, today, lucene = (figures.get(name) for name in ("block_max", "bm25s", "lucene"))
    assert new is not None
    planned_mb = build_bytes(passages, processes(passages)) / 1e6
    compared: dict[str, Any] = {
        "passages": passages,
        "build_peak_mb": new["build_peak_mb"],
        "build_peak_over_plan": new["build_peak_mb"] / planned_mb,
    }
    if lucene:
        compared["over_lucene_128"] = new["per_second_128"] / lucene["per_second_128"]
        compared["over_lucene_1"] = new["per_second_1"] / lucene["per_second_1"]
        shares = [
            len(set(theirs) & set(ours)) / len(theirs)
            for ours, theirs in zip(hits["block_max"], hits["lucene"], strict=True)
            if theirs
        ]
        compared["top10_overlap"] = statistics.mean(shares)
    if today:
        compared["over_today"] = new["per_second_1"] / today["per_second_1"]
        compared["over_today_128"] = new["per_second_128"] / today["per_second_128"]
        for key in ("build_s", "build_cpu_s"):
            compared[f"{key.removesuffix('_s')}_over_today"] = new[key] / today[key]
        compared["index_over_today"] = new["index_bytes"] / today["index_bytes"]
        compared["same_rows_as_today"] = hits["block_max"] == hits["bm25s"]
    return compared | figures


class Others(threading.Thread):
    """The share of the machine that programs outside this process tree use, while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.shares: list[float] = []
        self.start()

    def run(self) -> None:
        me = psutil.Process()
        before: dict[int, float] = {}
        whole = self._busy()
        while True:
            time.sleep(2.0)
            now, after = {}, self._busy()
            for process in _tree(me):
                try:
                    times = process.cpu_times()
                    now[process.pid] = times.user + times.system
                except psutil.Error:
                    continue
            own = sum(used - before.get(pid, 0.0) for pid, used in now.items())
            self.shares.append(max(0.0, after - whole - own) / (2.0 * (os.cpu_count() or 1)))
            before, whole = now, after

    def _busy(self) -> float:
        times = psutil.cpu_times()
        return sum(times) - times.idle - times.iowait


def _processor() -> str:
    text = Path("/proc/cpuinfo").read_text()
    name = next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "")
    return f"{os.cpu_count()} cores of {name or platform.machine()}"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000_000, 5_000_000])
    parser.add_argument("--jar", type=Path, help="Anserini's fat jar; without it, Lucene is left out")
    parser.add_argument("--without", nargs="+", default=[], choices=[*ENGINES, "lucene"])
    parser.add_argument("--folder", type=Path, help="keeps corpora and indexes")
    parser.add_argument("--call", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.call:
        name, folder, engine = options.call
        {"build_ours": build_ours, "time_ours": time_ours}[name](folder, engine)
        return
    others = Others()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        sizes = [measure(folder / str(size), size, options.jar, options.without) for size in options.sizes]
    result = {"processor": _processor(), "others_share": statistics.mean(others.shares), "sizes": sizes}
    print(json.dumps(_rounded(result), indent=1))


if __name__ == "__main__":
    main()
