"""Measures the retrieval server's throughput against its limits, and each kind of index against exact search.

    python benchmarks/retrieval.py          # both parts; up to an hour, gigabytes in the temporary folder
    python benchmarks/retrieval.py --only throughput
    python benchmarks/retrieval.py --only indexes

Prints one JSON object. Each part is also a separate script, with more options.
"""

import argparse
import importlib
import json
import tempfile
from pathlib import Path
from typing import Any


def throughput(*, passages: int) -> dict[str, Any]:
    part = importlib.import_module("retrieval_throughput")
    with tempfile.TemporaryDirectory() as folder:
        return part.measure(passages=passages, clients=128, seconds=20.0, rounds=3, folder=Path(folder))


def indexes(*, passages: int) -> dict[str, Any]:
    return importlib.import_module("retrieval_indexes").measure(passages=passages)


def main() -> None:
    parser = argparse.ArgumentParser(description="Benchmarks of the retrieval server.")
    parser.add_argument("--only", choices=("throughput", "indexes"))
    parser.add_argument("--passages", type=int, default=1_000_000)
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    if options.only != "indexes":
        figures |= throughput(passages=options.passages)
    if options.only != "throughput":
        figures |= indexes(passages=options.passages)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
