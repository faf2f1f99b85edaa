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
        self._backends, self._settings = parts, settings
        self._weights = {name: part.weight for name, part in settings.parts.items()}
        self.most = settings.depth

    def cost(self, query: str) -> int:
        """That of the most expensive part."""
        return max(part.cost(query) for part in self._backends.values())

    def search(self, queries: Sequence[str], *, topk: int) -> list[Hits]:
        """For each query at most `topk` (row, score), best first, ties by row."""
        depth = self._settings.depth
        searches = {name: partial(part.search, queries, topk=depth) for name, part in self._backends.items()}
        return self.fused(searches, weights=self._weights, constant=self._settings.constant, topk=topk)
