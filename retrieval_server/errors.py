"""What can go wrong before a server is ready, and what is wrong with a query."""


class RetrievalError(Exception):
    """A corpus, an index or a setting can not be used. `remedy` says what to do."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(f"{message}\n  What to do: {remedy}" if remedy else message)


class QueryError(ValueError):
    """A query that can not be searched for, whatever the index: when a backend raises it, only that query fails."""
