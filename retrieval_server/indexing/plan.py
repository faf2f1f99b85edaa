"""What an index of so many passages will need, from costs that `benchmarks/retrieval_indexes.py` measured.

The costs lie in `costs.json` beside this module, with the command and the date of their measurement. Bytes a vector do
not depend on the machine; milliseconds do, and exact search takes time in proportion to the passages. Recall is that of
the measurement: among more passages the same number of candidates holds fewer of the best.
"""

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Need:
    """What one kind of index needs, in bytes. `resident` must be in RAM; `disk` counts the vectors for re-ranking."""

    kind: str
    resident: float
    disk: float
    gpu: float | None
    recall_at_8: float


def costs() -> dict[str, Any]:
    """The measured costs: `measured` (how), `indexes` (a list of kinds)."""
    return json.loads(files("retrieval_server.indexing").joinpath("costs.json").read_text(encoding="utf-8"))


def needs(*, passages: int, dimension: int) -> list[Need]:
    """One row a measured kind, scaled by the number of passages and, but for links and ids, by the dimension."""
    measured = costs()
    scale = dimension / measured["dimension"]
    rows = []
    for cost in measured["indexes"]:
        index = passages * (cost["bytes_per_vector_fixed"] + cost["bytes_per_vector_by_dimension"] * scale)
        stored = passages * dimension * 2
        exact = cost["kind"] == "flat"
        rows.append(
            Need(
                kind=cost["kind"],
                resident=index,
                disk=index + stored,
                gpu=stored if exact else None,
                recall_at_8=cost["recall_at_8"],
            )
        )
    return rows
