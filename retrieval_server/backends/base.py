"""What the server asks of a backend. A new kind of index is one small class like this and a line in `opening`."""

from collections.abc import Sequence
from typing import ClassVar, Protocol

Hits = list[tuple[int, float]]


class Backend(Protocol):
    """An opened index over a corpus. Rows are the corpus's row numbers; scores are higher for better hits."""

    ignores_whitespace: ClassVar[bool]
    """Whether white space around and between words changes nothing."""

    def search(self, queries: Sequence[str], *, topk: int) -> list[Hits]:
        """For each query at most `topk` (row, score), best first; an empty list when nothing matches. One thread."""
        ...

    def cost(self, query: str) -> int:
        """What the query weighs in a batch, in tokens about; at least 1."""
        ...
