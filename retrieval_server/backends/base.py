"""What the server asks of a backend."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from retrieval_server.corpus import Corpus


class Backend(Protocol):
    """An index over a corpus. Rows are the corpus's row numbers; scores are higher for better hits."""

    def search(self, queries: Sequence[str], *, topk: int) -> list[list[tuple[int, float]]]:
        """For each query at most `topk` (row, score), best first; an empty list when nothing matches."""
        ...

    def save(self, folder: Path) -> None:
        """Write the index into an existing folder."""
        ...

    @classmethod
    def build(cls, corpus: Corpus, settings: Any) -> Self:
        """Index every passage's contents."""
        ...

    @classmethod
    def load(cls, folder: Path, settings: Any) -> Self:
        """Open a saved index, memory-mapped where that is possible."""
        ...
