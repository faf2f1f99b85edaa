"""What an index of so many passages will need, from costs that `benchmarks/retrieval_indexes.py` measured.

The costs lie in `costs.json` beside this module, with the command and the date of their measurement. Bytes a vector do
not depend on the machine; milliseconds do, and exact search takes time in proportion to the passages.

Recall is expected, not measured, and within bounds. Through compressed vectors, the more passages there are, the more
of them look better than a true neighbour: `candidates` among `passages` hold of the true ones what
`candidates * (many / passages) ** growth` held among the `many` that were measured. With a growth of 1 they are as many
more as the passages: the low bound, since the true neighbours come nearer too. The high bound takes the growth from a
sixteenth of the measured passages to all of them; it rises with their number. What an index misses for want of probes
is as measured. A graph loses recall with more passages, in a way of its own, that was not measured.
"""

import json
import math
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

# The growth is read off where recall still depends on the candidates, and where those lists of one vector that RaBitQ
# takes for nearest no longer disturb.
_FEWEST, _ALL = 32, 0.995


@dataclass(frozen=True)
class Need:
    """What one kind of index needs, in bytes. `resident` must be in RAM; `disk` counts the vectors for re-ranking."""

    kind: str
    resident: float
    disk: float
    gpu: float | None


def costs() -> dict[str, Any]:
    """The measured costs: `indexes`, a row a kind, and how they were measured."""
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
    """Bounds of recall@8 by kind, of compressed kinds with so many re-ranked candidates. Needs numpy.

    Without a graph of more passages than were measured.
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


class _Curve:
    """Recall by candidates, straight between its points over the logarithm of the candidates."""

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
