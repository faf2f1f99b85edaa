"""Measures the corpus stage on generated passages: passages per second and peak memory, against a plain copy.

    python benchmarks/corpus.py [--passages 2000000] [--index]

Passages have wiki-18's form and length (a quoted title and 100 words) in a gzip file, as published. The copy has the
same lines. `--index` also builds BM25, measured separately. Each measurement runs in a separate process, so that its
peak memory is its own. Prints one JSON object.
"""

import argparse
import gzip
import json
import multiprocessing
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORDS = [f"word{number}" for number in range(50_000)]


def generate(path: Path, passages: int) -> None:
    """Write the source file: each text is a different slice of one long sequence of words."""
    chance = random.Random(0)
    words = chance.choices(WORDS, k=2_000_000)
    with gzip.open(path, "wt", compresslevel=1, encoding="utf-8") as file:
        for number in range(passages):
            begin = chance.randrange(len(words) - 100)
            text = " ".join(words[begin : begin + 100])
            file.write(json.dumps({"id": str(number), "contents": f'"Title {number}"\n{text}'}) + "\n")


def _convert(source: Path, corpus: Path) -> None:
    from s3_agent.data.corpus.corpora import convert_corpus

    convert_corpus([source], corpus, made_of={}, drop_blank=False)


def _copy(source: Path, corpus: Path) -> None:
    with gzip.open(source) as file, corpus.open("wb") as copy:
        shutil.copyfileobj(file, copy, 1 << 20)


def _index(source: Path, corpus: Path) -> None:
    from retrieval_server.backends.bm25.settings import Bm25Settings
    from retrieval_server.corpus import Corpus
    from retrieval_server.indexing import build_index

    build_index(Corpus(corpus), source.with_name("index"), Bm25Settings())


def _timed(work: Callable[[Path, Path], None], source: Path, corpus: Path, result: Any) -> None:
    started = time.monotonic()
    work(source, corpus)
    seconds = time.monotonic() - started
    result.put((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def measured(work: Callable[[Path, Path], None], source: Path, corpus: Path, passages: int) -> dict[str, float]:
    """Seconds, passages per second and peak memory of one measurement, in a fresh process."""
    spawning = multiprocessing.get_context("spawn")
    result = spawning.Queue()
    process = spawning.Process(target=_timed, args=(work, source, corpus, result))
    process.start()
    seconds, peak = result.get()
    process.join()
    return {
        "seconds": round(seconds, 1),
        "passages_per_s": round(passages / seconds),
        "peak_rss_mb": round(peak / 1e6),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=2_000_000)
    parser.add_argument("--index", action="store_true", help="build a BM25 index too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, corpus = Path(folder) / "wiki.jsonl.gz", Path(folder) / "corpus.jsonl"
        generate(source, options.passages)
        report: dict[str, Any] = {"passages": options.passages, "source_bytes": source.stat().st_size}
        report["plain_copy"] = measured(_copy, source, Path(folder) / "copy.jsonl", options.passages)
        report["corpus_stage"] = measured(_convert, source, corpus, options.passages)
        report["corpus_bytes"] = corpus.stat().st_size
        if options.index:
            report["bm25_index"] = measured(_index, source, corpus, options.passages)
            report["index_bytes"] = sum(file.stat().st_size for file in (Path(folder) / "index").iterdir())
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
