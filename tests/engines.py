"""The engines that run in tests, each with what a test must do to it from outside."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

from retrieval_server.config import index_settings
from tests.postgres_server import Postgres, running_postgres
from tests.qdrant_local_shim import KEY, QdrantLocalShim, running_qdrant_local_shim

ENGINES = ("pgvector", "qdrant")


class Engine(Protocol):
    """A running engine."""

    kind: str
    exact: dict[str, Any]
    """The settings with which the search compares every vector."""
    bm25_is_lucenes: bool
    """Whether scores are Lucene's, and not only the order of most passages."""

    def place(self) -> dict[str, Any]: ...
    def stop(self) -> None: ...
    def start(self) -> None: ...
    def change(self, name: str, row: int) -> None:
        """Change one passage of the index whose name begins so."""
        ...

    def lose(self, name: str, row: int) -> None:
        """Remove one passage."""
        ...


class PgvectorEngine:
    kind, exact, bm25_is_lucenes = "pgvector", {"layout": "exact", "vectors": "float32"}, False

    def __init__(self, server: Postgres) -> None:
        self._server = server
        self.stop, self.start = server.stop, server.start

    def place(self) -> dict[str, Any]:
        return {"url": self._server.url}

    def _table(self, name: str) -> str:
        [[table]] = self._server.run("select tablename from pg_tables where tablename ~ %s", f"^{name}_[0-9a-f]+$")
        return table

    def change(self, name: str, row: int) -> None:
        self._server.run(f"update {self._table(name)} set id = 'changed' where number = %s", row)

    def lose(self, name: str, row: int) -> None:
        self._server.run(f"delete from {self._table(name)} where number = %s", row)


class QdrantEngine:
    kind, exact, bm25_is_lucenes = "qdrant", {"layout": "exact", "vectors": "float32"}, True

    def __init__(self, shim: QdrantLocalShim) -> None:
        self._shim = shim
        self.stop, self.start = shim.stop, shim.start

    def place(self) -> dict[str, Any]:
        return {"url": self._shim.url}

    def _collection(self, name: str) -> str:
        [found] = [one.name for one in self._shim.client.get_collections().collections if one.name[:-13] == name]
        return found

    def change(self, name: str, row: int) -> None:
        self._shim.client.set_payload(self._collection(name), {"id": "changed"}, [row])

    def lose(self, name: str, row: int) -> None:
        self._shim.client.delete(self._collection(name), [row])


@contextmanager
def running_engine(kind: str) -> Iterator[Engine]:
    """The engine of that kind, with its key in the environment."""
    from pytest import MonkeyPatch

    with ExitStack() as stack:
        environment = stack.enter_context(MonkeyPatch.context())
        if kind == "pgvector":
            yield PgvectorEngine(stack.enter_context(running_postgres()))
        elif kind == "qdrant":
            environment.setenv("QDRANT_API_KEY", KEY)
            yield QdrantEngine(stack.enter_context(running_qdrant_local_shim()))


def engine_settings(engine: Engine, name: str, **more: Any) -> Any:
    """Settings of an index in that engine; a search by words, unless they say otherwise."""
    values = {"kind": engine.kind, "name": name, "search": "bm25", "patience_s": 0.5, **engine.place(), **more}
    return index_settings.validate_python(values)
