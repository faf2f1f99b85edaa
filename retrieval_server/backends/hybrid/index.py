"""The opened hybrid index: searches every part, and fuses their rankings by reciprocal rank."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

from retrieval_server.backends.base import Backend, Hits
from retrieval_server.backends.fusion import FusingBackend
from retrieval_server.backends.hybrid.settings import HybridSettings


class Hybrid(FusingBackend):
    """Several opened indexes. Each always gives its first `depth` hits, so that a short answer begins a longer one."""

    ignores_whitespace: ClassVar[bool] = False  # it counts for some parts

    def __init__(self, parts: Mapping[str, Backend], settings: HybridSettings) -> None:
        super().__init__(parts)
        self._settings = settings
        self.most = settings.depth

    def cost(self, query: str) -> int:
        """That of the most expensive part."""
        return max(part.cost(query) for part in self._parts.values())

    def search(self, queries: Sequence[str], *, topk: int) -> list[Hits]:
        """For each query at most `topk` (row, score), best first, ties by row."""
        settings = self._settings
        searches = {name: partial(part.search, queries, topk=settings.depth) for name, part in self._parts.items()}
        weights = {name: part.weight for name, part in settings.parts.items()}
        return self.fused(searches, weights=weights, constant=settings.constant, topk=topk)
