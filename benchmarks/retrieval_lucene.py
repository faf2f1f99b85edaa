"""Compares BM25 rankings with Lucene's. Needs Java 17 and Anserini's jar, which is inside pyserini's wheel.

    uv pip install --no-deps --target /tmp/pyserini pyserini==0.22.1
    python benchmarks/retrieval_lucene.py --jar /tmp/pyserini/pyserini/resources/jars/*.jar

Prints one JSON object: `top10_overlap` is the mean share of Lucene's first ten that are in ours, where rows tied with
our tenth count as found (Lucene rounds lengths above 40, so its ties differ from ours); `top10_overlap_strict` does not
count such ties.
"""

import argparse
import base64
import json
import random
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from package_texts import write_corpus

from retrieval_server.backends.bm25.index import Bm25
from retrieval_server.backends.bm25.settings import Bm25Settings
from retrieval_server.corpus import Corpus

TOPK = 10
_SOURCE = Path(__file__).with_name("LuceneBm25.java")


def lucene(jar: Path, texts: Sequence[str], queries: Sequence[str], *, topk: int = TOPK) -> list[dict[str, Any]]:
    """Lucene's terms and hits of each query over the texts."""
    settings = Bm25Settings()
    with tempfile.TemporaryDirectory() as folder:
        for name, lines in (("passages", texts), ("queries", queries)):
            encoded = "\n".join(base64.b64encode(line.encode("utf-8", "replace")).decode() for line in lines)
            Path(folder, name).write_text(encoded + "\n", encoding="ascii")
        files = [str(Path(folder, name)) for name in ("passages", "queries")]
        command = ["java", "-cp", str(jar), str(_SOURCE), *files, str(settings.k1), str(settings.b), str(topk)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8")
    return [json.loads(line) for line in done.stdout.splitlines()]


def some_queries(texts: Sequence[str], count: int, *, seed: int = 0) -> list[str]:
    """Sequences of 2 to 8 words from random passages, some as questions, some with Boolean operators."""
    rng = random.Random(seed)
    queries = []
    for _ in range(count):
        words = rng.choice(texts).split()
        start = rng.randrange(max(1, len(words) - 8))
        words = words[start : start + rng.randint(2, 8)]
        shape = rng.choice(["{}", "What is {}?", "({}) AND NOT ({})"])
        half = len(words) // 2
        two = (" ".join(words[:half]), " ".join(words[half:]))
        queries.append(shape.format(*(two if shape.count("{}") == 2 else (" ".join(words),))))
    return queries


def overlap(jar: Path, corpus: Corpus, queries: Sequence[str]) -> dict[str, Any]:
    """How far our rankings agree with Lucene's."""
    backend = Bm25.build(corpus, Bm25Settings())
    theirs = lucene(jar, [document.contents for document in corpus], queries)
    strict, tied, same_terms, first, counted = 0.0, 0.0, 0, 0, 0
    for query, hits, other in zip(queries, backend.search(queries, topk=10 * TOPK), theirs, strict=True):
        same_terms += list(dict.fromkeys(backend.terms(query))) == other["terms"]
        rows = [row for row, _ in other["hits"]]
        if not rows:
            continue
        counted += 1
        own = [row for row, _ in hits[:TOPK]]
        least = hits[min(TOPK, len(hits)) - 1][1] * (1 - 1e-4) if hits else 0.0
        near = {row for row, score in hits if score >= least}
        strict += len(set(rows) & set(own)) / len(rows)
        tied += len(set(rows) & near) / len(rows)
        first += bool(own) and own[0] == rows[0]
    return {
        "passages": len(corpus),
        "queries": len(queries),
        "with_hits": counted,
        "same_terms": same_terms / len(queries),
        "same_first": first / counted,
        "top10_overlap_strict": strict / counted,
        "top10_overlap": tied / counted,
    }


def main() -> None:
    """Measure on the prose of the installed packages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jar", type=Path, required=True, help="Anserini's fat jar")
    parser.add_argument("--passages", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "corpus.jsonl")
        write_corpus(path, options.passages)
        corpus = Corpus(path)
        queries = some_queries([document.text for document in corpus], options.queries)
        print(json.dumps(overlap(options.jar, corpus, queries), indent=1))


if __name__ == "__main__":
    main()
