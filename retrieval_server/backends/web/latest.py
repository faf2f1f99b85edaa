"""Holds the latest pages of a live web search in memory, for `/documents` and `/grep`. No answer is kept."""

import threading
from collections.abc import Sequence
from typing import Self

from retrieval_server.errors import QueryError
from retrieval_server.schemas import Document

MOST_PAGES = 2000


class PageRow(int):
    """A row that holds its page: a hit can be read also if later pages have taken the place of its own."""

    page: Document

    def __new__(cls, row: int, page: Document) -> Self:
        """A row with its page."""
        held = super().__new__(cls, row)
        held.page = page
        return held


class Latest:
    """The latest `most` pages, each in the row of the oldest one that it replaces. Threads may share it."""

    def __init__(self, most: int = MOST_PAGES) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._pages: list[Document] = []
        self._rows: dict[str, PageRow] = {}
        self._found = 0
        self._calls = 0

    def pay(self, budget: int | None) -> bool:
        """Count one paid request before it is sent; False if the budget is spent."""
        with self._lock:
            if budget is not None and self._calls >= budget:
                return False
            self._calls += 1
        return True

    def keep(
        self, key: str, request: str, body: str, pages: Sequence[Document], refused: str | None = None
    ) -> list[int]:
        """The rows of these pages. Raises QueryError if the query was `refused`."""
        if refused is not None:
            raise QueryError(refused)
        with self._lock:
            return [self._add(page) for page in pages]

    def rows(self, key: str) -> None:
        """No answer is kept, so every query is asked again."""

    def _add(self, page: Document) -> int:
        row = self._found % self._most
        self._found += 1
        if row == len(self._pages):
            self._pages.append(page)
        else:
            name = self._pages[row].id
            if self._rows[name] == row:
                del self._rows[name]
            self._pages[row] = page
        held = self._rows[page.id] = PageRow(row, page)
        return held

    def __len__(self) -> int:
        return len(self._pages)

    def __getitem__(self, row: int) -> Document:
        return row.page if isinstance(row, PageRow) else self._pages[row]

    def row_of(self, name: str) -> int | None:
        """The row of the latest page with that id; None if it is not held."""
        return self._rows.get(name)

    def close(self) -> None:
        """There is nothing to close."""
