"""An application on a port of its own, which can be taken away and brought back with what it holds."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Self

from fastapi import FastAPI

from s3_agent.testing.servers import serve


class Restartable:
    """Serves an application at `url` until `stop`, and there again after `start`."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._serving = ExitStack()
        self.url = self._serving.enter_context(serve(app))

    def stop(self) -> None:
        self._serving.close()

    def start(self) -> None:
        self._serving.enter_context(serve(self._app, port=int(self.url.rpartition(":")[2])))

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Stops it at the end."""
        try:
            yield self
        finally:
            self.stop()
