"""The engines of BM25, which is the better one for a number of passages, and how each is built and opened."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval_server.backends.base import Backend
from retrieval_server.backends.bm25.block_max import RECORD
from retrieval_server.backends.bm25.settings import Bm25Settings
from retrieval_server.corpus import Corpus, Report

MANY = 100_000
"""From so many passages on, pruning saves more in each search than compiling it costs when a server starts."""


@dataclass(frozen=True)
class Engine:
    """One form of the index. `build` writes into a folder, which may hold what a killed build of it has left."""

    name: str
    summary: str
    build: Callable[[Corpus, Bm25Settings, Path, Report], None]
    load: Callable[[Path, Bm25Settings], Backend]
    record: str
    """A file that every index of this engine has, and no other."""
    while_built: float = 1.0
    """Bytes on the disk during a build, per byte of the finished index."""


def _build_bm25s(corpus: Corpus, settings: Bm25Settings, folder: Path, report: Report) -> None:
    from retrieval_server.backends.bm25.index import Bm25

    Bm25.build(corpus, settings, report=report).save(folder)


def _load_bm25s(folder: Path, settings: Bm25Settings) -> Backend:
    from retrieval_server.backends.bm25.index import Bm25

    return Bm25.load(folder, settings)


def _build_block_max(corpus: Corpus, settings: Bm25Settings, folder: Path, report: Report) -> None:
    from retrieval_server.backends.bm25.block_max.building import build

    build(corpus, settings, folder, report=report)


def _load_block_max(folder: Path, settings: Bm25Settings) -> Backend:
    from retrieval_server.backends.bm25.block_max.index import BlockMax

    return BlockMax.load(folder, settings)


ENGINES = {
    engine.name: engine
    for engine in (
        Engine("bm25s", "every weight stored; adds up all postings", _build_bm25s, _load_bm25s, "params.index.json"),
        Engine("block_max", "packed; reads few postings", _build_block_max, _load_block_max, RECORD, while_built=4.0),
    )
}


def engine_for(settings: Bm25Settings, *, passages: int) -> Engine:
    """The engine that a new index of so many passages gets: the settings', or the better one at this size."""
    return ENGINES[settings.engine or ("block_max" if passages >= MANY else "bm25s")]


def engine_in(folder: Path) -> Engine:
    """The engine of a built index."""
    return next((engine for engine in ENGINES.values() if (folder / engine.record).exists()), ENGINES["bm25s"])


def read_costs() -> dict[str, Any]:
    """The measured costs: for each engine a list with one entry per size, and how they were measured."""
    return json.loads(Path(__file__).with_name("costs.json").read_text(encoding="utf-8"))
