"""Measures the start of a server over a large corpus: time until ready, memory, bytes read, and cold searches.

    python benchmarks/retrieval_startup.py --passages 1000000      # several minutes, 5 GB in the temporary folder
    python benchmarks/retrieval_startup.py --passages 20000 --kinds bm25 ivf_rabitq

The server runs in a separate process over real files, whose pages are dropped from the cache before it starts. Vectors
are synthetic (`synthetic_vectors.py`); queries go through a tiny untrained encoder, so that its memory does not count.
`anonymous_over_index_mb`: RssAnon when ready minus the size of the index (torch and transformers take hundreds of these
MB, as `--passages 1000` shows); `cold_ms`: the first search and the median of the next nine, each of which reads
different pages; `warm_ms`: the same ten again, without a cache of answers. Prints one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from retrieval_throughput import free_port, running
from synthetic_vectors import Generator
from untrained_encoder import save_untrained_bert

from retrieval_server.backends.bm25.settings import Bm25Settings
from retrieval_server.backends.dense.building import from_vectors
from retrieval_server.backends.dense.settings import DenseSettings, EncoderSettings
from retrieval_server.backends.dense.vectors import VECTORS
from retrieval_server.corpus import Corpus
from retrieval_server.indexing import build_index
from retrieval_server.indexing.build import write_index

KINDS = ("bm25", "flat", "ivf_rabitq")
DIMENSION = 768
WORDS, LONGEST = 20_000, 100
QUERIES = 10


def _word(number: int) -> str:
    """A word of letters for any number, so that the encoder and BM25 see words and not digits."""
    letters = ""
    while number or not letters:
        number, rest = divmod(number, 20)
        letters += "bcdfghjklmnprstvwxyz"[rest] + "aeiou"[rest % 5]
    return letters


def write_corpus(path: Path, passages: int) -> None:
    """Passages of 100 words with word frequencies like those of a natural language."""
    rng = np.random.default_rng(0)
    words = np.array([_word(number) for number in range(WORDS)])
    with path.open("w", encoding="utf-8") as file:
        for row in range(passages):
            text = " ".join(words[np.minimum(rng.zipf(1.2, LONGEST) - 1, WORDS - 1)])
            file.write(json.dumps({"id": str(row), "title": f"Title {row}", "text": text}) + "\n")


def tiny_encoder(folder: Path) -> EncoderSettings:
    """An untrained model of one layer with the dimension of E5."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    save_untrained_bert(
        folder, [*letters, *(f"##{letter}" for letter in letters)], dimension=DIMENSION, layers=1, heads=12
    )
    return EncoderSettings(model=str(folder))


def build(kind: str, corpus: Corpus, index: Path, encoder: EncoderSettings) -> None:
    """Build an index of real files with the code of `index build`; vectors come from the synthetic generator."""
    if kind == "bm25":
        return build_index(corpus, index, Bm25Settings())
    generator = Generator(dimension=DIMENSION)
    settings = DenseSettings(encoder=encoder, layout=kind)  # pyright: ignore[reportArgumentType]
    rows = lambda start, end: generator.rows(start, end - start)  # noqa: E731
    write_index(corpus, index, settings, from_vectors(corpus, settings, rows=rows, dimension=DIMENSION))


def drop_from_cache(paths: list[Path]) -> None:
    """Drop the files from the page cache, so that they are read from the disk again."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def started(corpus: Path, index: Path) -> Iterator[tuple[int, httpx.Client, float]]:
    """Start a server and wait until it is ready: its process id, a client, and the seconds."""
    port, begin = free_port(), time.perf_counter()
    where = ["--corpus", str(corpus), "--index", str(index), "--port", str(port)]
    command = [sys.executable, "-m", "retrieval_server", *where, "--cache-mb", "0"]
    base = f"http://127.0.0.1:{port}"
    with running(command, port=port) as process, httpx.Client(base_url=base, timeout=60, trust_env=False) as client:
        yield process.pid, client, time.perf_counter() - begin


def memory(pid: int) -> dict[str, float]:
    """MB (1e6 bytes) of the process: anonymous and file-backed."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) * 1024 / 1e6 for name in ("RssAnon", "RssFile")}


def cached_mb(paths: list[Path]) -> float:
    """MB of the files in the page cache, by util-linux: the amount read since they were dropped from it."""
    command = ["fincore", "--bytes", "--noheadings", "--output", "RES", *map(str, paths)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return sum(map(int, shown.split())) / 1e6


def search_ms(client: httpx.Client, query: str) -> float:
    begin = time.perf_counter()
    client.post("/retrieve", json={"queries": [query], "topk": 8}).raise_for_status()
    return 1000 * (time.perf_counter() - begin)


def one_kind(kind: str, corpus: Path, folder: Path, encoder: EncoderSettings) -> dict[str, Any]:
    """The figures of one index."""
    index = folder / kind
    began = time.perf_counter()
    build(kind, Corpus(corpus), index, encoder)
    built = time.perf_counter() - began
    files = [path for path in index.iterdir() if path.is_file()]
    size = sum(path.stat().st_size for path in files if path.name != VECTORS)
    rng = np.random.default_rng(7)
    queries = [" ".join(_word(int(number)) for number in rng.integers(200, WORDS, size=8)) for _ in range(QUERIES)]
    drop_from_cache([corpus, *files])
    with started(corpus, index) as (pid, client, ready):
        at_start, corpus_read, index_read = memory(pid), cached_mb([corpus]), cached_mb(files)
        cold = [search_ms(client, query) for query in queries]
        warm = [search_ms(client, query) for query in queries]
        after = memory(pid)
    figures = {
        "kind": kind,
        "build_s": round(built, 1),
        "index_mb": round(size / 1e6, 1),
        "ready_s": round(ready, 2),
        "corpus_mb_read_until_ready": round(corpus_read, 1),
        "index_mb_read_until_ready": round(index_read, 1),
        "ready": {name: round(value, 1) for name, value in at_start.items()},
        "after_searches": {name: round(value, 1) for name, value in after.items()},
        "anonymous_over_index_mb": round(at_start["RssAnon"] - size / 1e6, 1),
        "cold_ms": [round(cold[0], 1), round(float(np.median(cold[1:])), 1)],
        "warm_ms": round(float(np.median(warm)), 1),
    }
    sys.stderr.write(json.dumps(figures) + "\n")
    for path in files:
        path.unlink()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = folder / "corpus.jsonl"
        write_corpus(corpus, options.passages)
        encoder = tiny_encoder(folder / "encoder")
        figures = {
            "passages": options.passages,
            "corpus_mb": round(corpus.stat().st_size / 1e6, 1),
            "starts": [one_kind(kind, corpus, folder, encoder) for kind in options.kinds],
        }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
