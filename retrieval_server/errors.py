"""What can go wrong before a server is ready."""


class RetrievalError(Exception):
    """A corpus, an index or a setting can not be used. `remedy` says what to do."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(f"{message}\n  What to do: {remedy}" if remedy else message)
