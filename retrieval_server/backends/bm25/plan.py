"""Predicts what a BM25 index of a given number of passages needs, from costs that `benchmarks/retrieval_bm25.py`
measured.

The costs are in `costs.json` next to this module, with the command, the processor and the date of the measurement. Each
grows as a power of the number of passages, which is fitted to the two nearest measured sizes.
"""

import math
from collections.abc import Sequence
from typing import Any

from retrieval_server.backends.bm25.block_max.memory import FORMULA, build_bytes, processes
from retrieval_server.backends.bm25.engines import ENGINES, engine_for, read_costs
from retrieval_server.backends.bm25.settings import Bm25Settings
from retrieval_server.index_kinds import IndexPlan


def expected(engine: str, cost: str, *, passages: int) -> float:
    """A cost of an engine at so many passages: `bytes`, `build_cpu_s`, `build_peak_mb` or `ms` on one thread."""
    measured = (size for size in read_costs()["engines"][engine] if cost in size)
    sizes = sorted(measured, key=lambda size: abs(math.log(size["passages"] / passages)))
    return _carried_on(sizes[:2], cost, passages)


def _carried_on(sizes: Sequence[dict[str, Any]], cost: str, passages: int) -> float:
    near, far = sizes[0], sizes[-1]
    growth = 1.0
    if near["passages"] != far["passages"]:
        growth = math.log(near[cost] / far[cost]) / math.log(near["passages"] / far["passages"])
    return near[cost] * (passages / near["passages"]) ** growth


def _source(measured: dict[str, Any], passages: int) -> str:
    """How the numbers for so many passages are known."""
    sizes = sorted({size["passages"] for engine in measured["engines"].values() for size in engine})
    if passages in sizes:
        return f"Measured with {passages:,} passages"
    return f"Computed from measurements of {', '.join(f'{size:,}' for size in sizes)} passages"


def table(*, passages: int) -> IndexPlan:
    """Disk, build and search of each engine."""
    measured, default = read_costs(), engine_for(Bm25Settings(), passages=passages).name
    rows = []
    for name in ENGINES:
        size, seconds, peak, ms = (
            expected(name, cost, passages=passages) for cost in ("bytes", "build_cpu_s", "build_peak_mb", "ms")
        )
        numbers = f"{size / 1e9:.2f}", f"{seconds / 60:.1f}", f"{peak / 1e3:.1f}", f"{ms:.2f}"
        rows.append((name, *numbers, "yes" if name == default else ""))
    running = processes(passages)
    most = build_bytes(passages, running)
    return IndexPlan(
        title=f"bm25: {passages} passages of 100 words",
        columns=("engine", "disk, GB", "build, CPU minutes", "build RAM, GB", "a query, ms", "default"),
        rows=tuple(rows),
        note=f"{_source(measured, passages)}, {measured['date']}, on {measured['processor']}, with "
        f"`{measured['command']}`: queries of 8 words, one thread. A build with block_max takes at most "
        f"{most / 1e9:.1f} GB here with {running} processes: {FORMULA}. Both engines give the same answers. A server "
        "maps the index into memory and needs no RAM for it, but is as fast as this only if the files stay in free "
        "memory.",
    )
