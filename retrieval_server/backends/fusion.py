"""Fuses several rankings of a corpus by reciprocal rank, with the time and the scores of each."""

from collections.abc import Callable, Mapping

from retrieval_server.backends.base import Hits, StagedBackend, StageScore

STAGE = "hybrid"
"""The name of the fused score. With a reranker it is also the stage of a hybrid index's whole search."""
FUSION = "fusion"
"""The stage of the time that the fusion takes."""


def fuse(rankings: Mapping[str, Hits], *, weights: Mapping[str, float], constant: float) -> Hits:
    """Reciprocal rank fusion: a ranking gives weight / (constant + rank) to each of its hits, with ranks from 1.

    All hits are returned, best first, ties by row. Each score keeps those of the rankings, by their names.
    """
    fused: dict[int, float] = {}
    stages: dict[int, dict[str, float]] = {}
    for name, hits in rankings.items():
        for rank, (row, score) in enumerate(hits, start=1):
            fused[row] = fused.get(row, 0.0) + weights[name] / (constant + rank)
            stages.setdefault(row, {})[name] = score
    scored = [(row, StageScore(score, {**stages[row], STAGE: score})) for row, score in fused.items()]
    return sorted(scored, key=lambda hit: (-hit[1], hit[0]))


class FusingBackend(StagedBackend):
    """A backend that fuses rankings: the base class of those that search in more than one way."""

    def fused(
        self,
        searches: Mapping[str, Callable[[], list[Hits]]],
        *,
        weights: Mapping[str, float],
        constant: float,
        topk: int,
    ) -> list[Hits]:
        """Run each search, which returns a list for each query, and fuse the lists of each query."""
        found: dict[str, list[Hits]] = {}
        for name, search in searches.items():
            with self.timed(name):
                found[name] = search()
        with self.timed(FUSION):
            return [
                fuse(dict(zip(found, lists, strict=True)), weights=weights, constant=constant)[:topk]
                for lists in zip(*found.values(), strict=True)
            ]
