"""The errors of loading and building, and of queries."""


class RetrievalError(Exception):
    """A corpus, an index or a setting can not be used. `remedy` says what to do."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(f"{message}\n  What to do: {remedy}" if remedy else message)


class Unavailable(RetrievalError):
    """A service behind the index gives no answer: the same search may succeed later, and no query is at fault.

    `retry_after_s`: the seconds for which the service asks not to be asked again; None if it does not say.
    """

    def __init__(self, message: str, *, remedy: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.retry_after_s = retry_after_s


class RequestRefused(RetrievalError):
    """A service refuses this request because of what it holds, for example a text that is too long."""


class SearchRefused(RetrievalError):
    """A search that will be refused again: the client gets the HTTP status, the code and the message."""

    def __init__(self, status: int, code: str, message: str, remedy: str) -> None:
        super().__init__(message, remedy=remedy)
        self.status, self.code, self.message, self.remedy = status, code, message, remedy


class QueryError(ValueError):
    """A query that can not be searched, whatever the index: if a backend raises it, only that query fails."""
