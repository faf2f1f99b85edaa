"""Predicts what an index of a given number of passages needs, from costs that `benchmarks/retrieval_indexes.py`
measured.

`s3-agent index plan` calls it. The costs are in `costs.json` next to this module, with the command and the date of the
measurement. Bytes per vector do not depend on the machine; milliseconds do, and the time of exact search is
proportional to the number of passages.

Recall is an estimate with two bounds, not a measurement. The more passages there are, the more of them score better
than a true neighbour after compression. `candidates` among `passages` are assumed to hold the same share of true
neighbours as `candidates * (many / passages) ** growth` did among the `many` measured passages. The low bound uses a
growth of 1: better-scoring passages increase in proportion to the passages. It is low because the true neighbours get
closer too. The high bound uses the growth that was measured between a sixteenth of the passages and all of them; the
growth rises with their number. The loss from too few probes is taken as measured. A graph also loses recall with more
passages; how much was not measured.
"""

import json
import math
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from retrieval_server.index_kinds import IndexPlan

# The growth is measured in the range where recall still depends on the candidates, and where lists of one vector, which
# RaBitQ ranks as nearest, no longer distort it.
_FEWEST, _ALL = 32, 0.995


@dataclass(frozen=True)
class Need:
    """What one kind of index needs, in bytes. `resident` must be in RAM; `disk` counts the vectors for re-ranking."""

    kind: str
    resident: float
    disk: float
    gpu: float | None


def costs() -> dict[str, Any]:
    """The measured costs: `indexes`, one row per kind, and how they were measured."""
    return json.loads(files("retrieval_server.backends.dense").joinpath("costs.json").read_text(encoding="utf-8"))


def needs(*, passages: int, dimension: int) -> list[Need]:
    """A row for each measured kind, scaled by the passages and, except for links and ids, by the dimension."""
    measured = costs()
    scale = dimension / measured["dimension"]
    rows = []
    for cost in measured["indexes"]:
        index = passages * (cost["bytes_per_vector_fixed"] + cost["bytes_per_vector_by_dimension"] * scale)
        stored = passages * dimension * 2
        gpu = stored if cost["kind"] == "flat" else None
        rows.append(Need(kind=cost["kind"], resident=index, disk=index + stored, gpu=gpu))
    return rows


def expected_recall(*, passages: int, candidates: int) -> dict[str, tuple[float, float]]:
    """Bounds of recall@8 by compressed kind, with this number of re-ranked candidates. Needs numpy.

    A graph is left out for more passages than were measured.
    """
    measured = costs()
    recalls = {}
    for cost in measured["indexes"]:
        curves = {int(count): _Curve(curve) for count, curve in cost["by_candidates"].items()}
        if curves:
            recalls[cost["kind"]] = _carried_on(curves, passages, candidates)
        elif cost["kind"] != "hnsw" or passages <= measured["passages"]:
            recalls[cost["kind"]] = (cost["recall_at_8"], cost["recall_at_8"])
    return recalls


def table(*, passages: int, dimension: int, candidates: int) -> IndexPlan:
    """RAM, disk and GPU memory of each layout, and the recall to expect."""
    measured, recalls = costs(), expected_recall(passages=passages, candidates=candidates)
    rows = []
    for need in needs(passages=passages, dimension=dimension):
        gpu = "-" if need.gpu is None else f"{need.gpu / 1e9:.1f}"
        sizes = f"{need.resident / 1e9:.1f}", f"{need.disk / 1e9:.1f}", gpu
        rows.append((need.kind, *sizes, _between(recalls.get(need.kind))))
    return IndexPlan(
        title=f"dense: {passages} passages x {dimension}, in GB (1e9 bytes)",
        columns=("layout", "RAM", "disk", "GPU", "expected recall@8"),
        rows=tuple(rows),
        note=f"Measured {measured['date']} by `{measured['command']}` on synthetic vectors of {measured['dimension']} "
        f"numbers. Bytes scale with the passages. Recall of compressed layouts, with {candidates} re-ranked candidates,"
        " lies between two bounds, extrapolated from the measured one to so many passages; `candidates` in the "
        "settings raises it.",
    )


def _between(bounds: tuple[float, float] | None) -> str:
    if bounds is None:
        return "-"
    low, high = bounds
    return f"{low:.3f}" if f"{low:.3f}" == f"{high:.3f}" else f"{low:.2f} to {high:.2f}"


class _Curve:
    """Recall by candidates, interpolated linearly over the logarithm of the candidates."""

    def __init__(self, recalls: dict[str, float]) -> None:
        self.candidates = [int(count) for count in recalls]
        self._logs = [math.log(count) for count in self.candidates]
        self._recalls = list(recalls.values())

    def recall(self, candidates: float) -> float:
        import numpy as np

        return float(np.interp(math.log(candidates), self._logs, self._recalls))

    def candidates_for(self, recall: float) -> float:
        import numpy as np

        return math.exp(np.interp(recall, self._recalls, self._logs))


def _carried_on(curves: dict[int, _Curve], passages: int, candidates: int) -> tuple[float, float]:
    few, many = sorted(curves)
    measured = [
        math.log(count / curves[few].candidates_for(recall)) / math.log(many / few)
        for count in curves[many].candidates
        if count >= _FEWEST and (recall := curves[many].recall(count)) < _ALL
    ]
    growths = (1.0, min(1.0, max([0.0, *measured])))
    low, high = (curves[many].recall(max(1.0, candidates * (many / passages) ** growth)) for growth in growths)
    return min(low, high), max(low, high)
