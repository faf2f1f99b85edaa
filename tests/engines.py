"""The engines that run in tests, each with what a test must do to it from outside."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Protocol

from benchmarks.real_postgres import Postgres, running_postgres
from retrieval_server.config import index_settings
from tests.fake_opensearch import AUTHORIZATION, FakeOpenSearch, running_fake_opensearch
from tests.qdrant_local_shim import KEY, QdrantLocalShim, running_qdrant_local_shim

ENGINES = ("pgvector", "qdrant", "opensearch", "lancedb")
EVERY_VECTOR = {"layout": "exact", "vectors": "float32"}
LEXICAL = ("pgvector", "qdrant", "opensearch")


@dataclass(frozen=True)
class Way:
    """Settings of a search by vectors, the error of its scores, and the share of the best that it finds."""

    settings: Mapping[str, Any]
    error: float = 1e-4
    recall: float = 1.0


HALF = 5e-3  # the error of a score from float16
EXACT = Way(EVERY_VECTOR)
WAYS = {
    "pgvector": {
        "exact": EXACT,
        "default": Way({"ef_search": 400}, error=HALF, recall=0.95),
        "binary": Way({"layout": "binary", "candidates": 400}, error=HALF, recall=0.95),
    },
    "qdrant": {"exact": EXACT, "default": Way({}, error=HALF, recall=0.95)},
    "lancedb": {
        "exact": EXACT,
        "default": Way({}, error=HALF),
        "ivf_flat": Way({"layout": "ivf_flat", "lists": 4, "probes": 4}, error=HALF),
        "ivf_rq": Way({"layout": "ivf_rq", "lists": 4, "probes": 4, "refine": 50}, error=HALF, recall=0.95),
    },
}


class Engine(Protocol):
    """A running engine."""

    kind: str
    exact: ClassVar[dict[str, Any]]
    """The settings with which the search compares every vector."""
    lexical: bool
    dense: bool
    bm25_is_lucenes: bool
    """Whether scores are Lucene's to the last digits."""
    encoder: str
    """The folder of a model, for engines that search only vectors."""

    def place(self) -> dict[str, Any]: ...
    def place_of_graphs(self) -> dict[str, Any]:
        """The same place, where a search uses a graph also of few passages."""
        ...

    def stop(self) -> None: ...
    def start(self) -> None: ...
    def change(self, name: str, row: int) -> None:
        """Change one passage of the index whose name begins so."""
        ...

    def lose(self, name: str, row: int) -> None:
        """Remove one passage."""
        ...

    def remove(self, name: str) -> None:
        """Remove the whole index."""
        ...


class PgvectorEngine:
    lexical = dense = True
    encoder = ""
    kind, bm25_is_lucenes = "pgvector", False
    exact: ClassVar[dict[str, Any]] = EVERY_VECTOR

    def __init__(self, server: Postgres) -> None:
        self._server = server
        self.stop, self.start = server.stop, server.start

    def place(self) -> dict[str, Any]:
        return {"url": self._server.url}

    def place_of_graphs(self) -> dict[str, Any]:
        return {"url": f"{self._server.url}&options=-c%20enable_seqscan%3Doff"}

    def _table(self, name: str) -> str:
        [[table]] = self._server.run("select tablename from pg_tables where tablename ~ %s", f"^{name}_[0-9a-f]+$")
        return table

    def change(self, name: str, row: int) -> None:
        self._server.run(f"update {self._table(name)} set id = 'changed' where number = %s", row)

    def lose(self, name: str, row: int) -> None:
        self._server.run(f"delete from {self._table(name)} where number = %s", row)

    def remove(self, name: str) -> None:
        self._server.run(f"drop table {self._table(name)}")


class QdrantEngine:
    lexical = dense = True
    encoder = ""
    kind, bm25_is_lucenes = "qdrant", True
    exact: ClassVar[dict[str, Any]] = EVERY_VECTOR

    def __init__(self, shim: QdrantLocalShim) -> None:
        self._shim = shim
        self.stop, self.start = shim.stop, shim.start

    def place(self) -> dict[str, Any]:
        return {"url": self._shim.url}

    place_of_graphs = place

    def _collection(self, name: str) -> str:
        [found] = [one.name for one in self._shim.client.get_collections().collections if one.name[:-13] == name]
        return found

    def change(self, name: str, row: int) -> None:
        self._shim.client.set_payload(self._collection(name), {"id": "changed"}, [row])

    def lose(self, name: str, row: int) -> None:
        self._shim.client.delete(self._collection(name), [row])

    def remove(self, name: str) -> None:
        self._shim.client.delete_collection(self._collection(name))


class OpenSearchEngine:
    lexical, dense = True, False
    encoder = ""
    exact: ClassVar[dict[str, Any]] = {}
    kind, bm25_is_lucenes = "opensearch", True

    def __init__(self, fake: FakeOpenSearch) -> None:
        self._fake = fake
        self.stop, self.start = fake.stop, fake.start

    def place(self) -> dict[str, Any]:
        return {"url": self._fake.url}

    place_of_graphs = place

    def _index(self, name: str) -> Any:
        [found] = [index for key, index in self._fake.indexes.items() if key[:-13] == name]
        return found

    def change(self, name: str, row: int) -> None:
        self._index(name).documents[str(row)] = {"id": "changed", "terms": ""}

    def lose(self, name: str, row: int) -> None:
        del self._index(name).documents[str(row)]
        self._index(name).refresh()

    def remove(self, name: str) -> None:
        [found] = [key for key in self._fake.indexes if key[:-13] == name]
        del self._fake.indexes[found]


class LanceDBEngine:
    """Files: what is taken away is their folder."""

    lexical, dense = False, True
    encoder = ""
    kind, bm25_is_lucenes = "lancedb", False
    exact: ClassVar[dict[str, Any]] = EVERY_VECTOR

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def place(self) -> dict[str, Any]:
        return {"url": str(self._folder)}

    place_of_graphs = place

    def stop(self) -> None:
        self._folder.rename(self._folder.with_name("away"))
        self._folder.write_text("no folder")

    def start(self) -> None:
        self._folder.unlink()
        self._folder.with_name("away").rename(self._folder)

    def _path(self, name: str) -> Path:
        [path] = self._folder.glob(f"{name}_{'[0-9a-f]' * 12}.lance")
        return path

    def _table(self, name: str) -> Any:
        import lancedb

        return lancedb.connect(self._folder).open_table(self._path(name).stem)

    def change(self, name: str, row: int) -> None:
        self._table(name).update(where=f"number = {row}", values={"id": "changed"})

    def lose(self, name: str, row: int) -> None:
        self._table(name).delete(f"number = {row}")

    def remove(self, name: str) -> None:
        shutil.rmtree(self._path(name))


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
        elif kind == "opensearch":
            environment.setenv("OPENSEARCH_AUTHORIZATION", AUTHORIZATION)
            yield OpenSearchEngine(stack.enter_context(running_fake_opensearch()))
        elif kind == "lancedb":
            folder = Path(stack.enter_context(TemporaryDirectory())) / "lance"
            folder.mkdir()
            yield LanceDBEngine(folder)


def engine_settings(engine: Engine, name: str, **more: Any) -> Any:
    """Settings of an index in that engine; a search by words if it has one, unless they say otherwise."""
    plain = {"search": "bm25"} if engine.lexical else {"encoder": {"model": engine.encoder}, **engine.exact}
    if more.get("search") == "dense":
        plain = {"encoder": {"model": engine.encoder}}
    values = {"kind": engine.kind, "name": name, "patience_s": 0.5, **plain, **engine.place(), **more}
    return index_settings.validate_python(values)
