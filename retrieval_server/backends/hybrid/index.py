"""The opened hybrid index: searches every part, and fuses their rankings by reciprocal rank."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from retrieval_server.backends.base import Backend, Hits, StagedBackend, StageScore
from retrieval_server.backends.hybrid.settings import HybridSettings
from retrieval_server.backends.ordering import fuse

STAGE = "hybrid"
"""The name of the fused score: with a reranker, also of the search of the whole index."""
FUSION = "fusion"
"""The name of the time that the fusion takes, after the parts."""


class Hybrid(StagedBackend):
    """Several opened indexes. Each always gives its first `depth` hits, so that a short answer begins a longer one."""

    ignores_whitespace: ClassVar[bool] = False  # it counts for some parts

    def __init__(self, parts: Mapping[str, Backend], settings: HybridSettings) -> None:
        super().__init__(parts)
        self._backends, self._settings = parts, settings
        self.most = settings.depth

    def cost(self, query: str) -> int:
        """That of the most expensive part."""
        return max(part.cost(query) for part in self._backends.values())

    def search(self, queries: Sequence[str], *, topk: int) -> list[Hits]:
        """For each query at most `topk` (row, score), best first, ties by row."""
        found: dict[str, list[Hits]] = {}
        for name, part in self._backends.items():
            with self.timed(name):
                found[name] = part.search(queries, topk=self._settings.depth)
        with self.timed(FUSION):
            return [
                self._fused({name: lists[number] for name, lists in found.items()})[:topk]
                for number in range(len(queries))
            ]

    def _fused(self, rankings: Mapping[str, Hits]) -> Hits:
        stages: dict[int, dict[str, float]] = {}
        for name, hits in rankings.items():
            for row, score in hits:
                stages.setdefault(row, {})[name] = score
        weights = [self._settings.parts[name].weight for name in rankings]
        fused = fuse([*rankings.values()], constant=self._settings.constant, weights=weights)
        return [(row, StageScore(score, {**stages[row], STAGE: score})) for row, score in fused]
