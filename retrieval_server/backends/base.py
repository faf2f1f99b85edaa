"""The protocol of an opened index, as the server calls it."""

from collections.abc import Sequence
from typing import ClassVar, Protocol

from retrieval_server.schemas import Document

Hits = list[tuple[int, float]]


class Passages(Protocol):
    """The part of a corpus that the server uses; several threads read it concurrently."""

    def __len__(self) -> int: ...
    def __getitem__(self, row: int, /) -> Document: ...
    def row_of(self, name: str, /) -> int | None:
        """The row of the passage with that id."""
        ...


class WaitingBackend(Protocol):
    """A backend that waits for another service and computes nothing: each query is searched by itself, at once."""

    ignores_whitespace: ClassVar[bool]
    """As in `Backend`."""

    async def find(self, query: str, *, topk: int) -> Hits:
        """At most `topk` (row, score), best first. Raises SearchRefused for what will be refused again."""
        ...

    async def close(self) -> None:
        """Stop, and give back what it holds."""
        ...


class Backend(Protocol):
    """An opened index over a corpus. Rows are the corpus's row numbers; scores are higher for better hits.

    For example, a backend that finds the passages that contain the query literally:

        class Grep:
            ignores_whitespace = False

            def __init__(self, texts):
                self._texts = texts

            def search(self, queries, *, topk):
                rows = range(len(self._texts))
                return [[(row, 1.0) for row in rows if query in self._texts[row]][:topk] for query in queries]

            def cost(self, query):
                return 1
    """

    ignores_whitespace: ClassVar[bool]
    """Whether white space around and between words does not change the results."""

    def search(self, queries: Sequence[str], *, topk: int) -> list[Hits]:
        """For each query at most `topk` (row, score), best first; an empty list when nothing matches. One thread."""
        ...

    def cost(self, query: str) -> int:
        """The query's weight in a batch, roughly in tokens; at least 1."""
        ...
