"""LanceDB as an engine: vectors in a folder or in object storage, which any number of servers read.

There is no service of its own: each retrieval server opens the files. Its full-text search has fixed k1 and b, so words
are left to other engines.
"""

import re
import struct
from collections.abc import Sequence
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from retrieval_server.backends.base import Hits
from retrieval_server.backends.engines.kind import EngineKind
from retrieval_server.backends.engines.settings import EngineSettings
from retrieval_server.backends.engines.store import Batch, Shape, Store
from retrieval_server.corpus import Report
from retrieval_server.errors import RetrievalError, Unavailable

_MISSING = re.compile(r"was not found|does not exist", re.IGNORECASE)
_LEAST = 256  # vectors from which an IVF index can be trained
_GATHERED = 500  # batches; each is a fragment, and each write lists all fragments in a new file
_NOW = timedelta(milliseconds=1)  # at less LanceDB warns of readers of older versions; an unfinished index has none


class LanceDBSettings(EngineSettings, frozen=True):
    """A table of LanceDB. `url`: a folder, or `s3://BUCKET/PATH`, `gs://…`, `az://…` with the keys of that storage in
    the environment.

    `layout`: `exact` compares every vector, `ivf_flat` those of the nearest lists, `ivf_rq` small copies of them
    (RaBitQ), of which `refine` times as many are scored again with the vectors.
    """

    kind: Literal["lancedb"] = "lancedb"
    search: Literal["dense"] = "dense"
    layout: Literal["exact", "ivf_flat", "ivf_rq"] = "exact"
    vectors: Literal["float16", "float32"] = "float16"
    lists: int | None = Field(default=None, ge=1, description="number of IVF lists; default: LanceDB's")
    # used only by the search
    probes: int = Field(default=32, ge=1)
    refine: int = Field(default=10, ge=1)

    built_with: ClassVar = ("layout", "vectors", "lists")
    searched_with: ClassVar = ("probes", "refine")

    @field_validator("url")
    @classmethod
    def _from_anywhere(cls, url: str) -> str:
        """A folder's absolute path: the manifest is read in other working directories too."""
        return url if "://" in url else str(Path(url).expanduser().absolute())

    def unused(self) -> dict[str, str]:
        of_layout = {"exact": ("lists", "probes", "refine"), "ivf_flat": ("refine",), "ivf_rq": ()}
        return dict.fromkeys(of_layout[self.layout], f"layout: {self.layout}") | super().unused()

    @field_validator("url")
    @classmethod
    def _without_password(cls, url: str) -> str:
        if re.match(r"[a-z0-9]+://[^/]*@", url):
            raise ValueError(
                "`url` has a user or a password: leave it out, and set the storage's keys in the environment"
            )
        return url


class _Table(Store):
    def __init__(self, settings: LanceDBSettings, shape: Shape) -> None:
        try:
            self._lancedb, self._arrow = import_module("lancedb"), import_module("pyarrow")
        except ImportError as cause:
            raise RetrievalError(
                f"`kind: {settings.kind}` needs the packages lancedb and pyarrow: {cause}",
                remedy="install them: pip install 's3-agent[lancedb]'",
            ) from cause
        self._settings, self._shape = settings, shape
        self._opened: Any = None
        self._doubtful = False  # the table may hold passages that will be put again
        self._added = 0

    def _failed(self, cause: Exception) -> RetrievalError:
        place = f"LanceDB in {self._settings.url}"
        if _MISSING.search(str(cause)):
            return RetrievalError(
                f"{place} has no table {self._shape.name}: {cause}",
                remedy="build the index, or give the `url` and `name` that it was built with",
            )
        return Unavailable(f"{place} can not be read: {cause}", remedy="see the message; correct `url` or the storage")

    def _database(self) -> Any:
        return self._lancedb.connect(self._settings.url)

    def _table(self) -> Any:
        try:
            if self._opened is None:
                self._opened = self._database().open_table(self._shape.name)
            return self._opened
        except Exception as cause:  # each storage raises its own errors
            raise self._failed(cause) from cause

    def version(self) -> str:
        return f"LanceDB {self._lancedb.__version__}"

    def close(self) -> None:
        self._opened = None

    # filling

    def _schema(self) -> Any:
        pa = self._arrow
        number = pa.float16() if self._settings.vectors == "float16" else pa.float32()
        vector = pa.list_(number, self._shape.dimension)
        return pa.schema([("number", pa.int64()), ("id", pa.string()), ("embedding", vector)])

    def prepare(self, *, fresh: bool) -> bool:
        self._opened = None
        try:
            database = self._database()
            if fresh:
                database.drop_table(self._shape.name, ignore_missing=True)
            there = self._is_there()
            self._doubtful = there
            if not there:
                database.create_table(self._shape.name, schema=self._schema())
        except RetrievalError:
            raise
        except Exception as cause:
            raise self._failed(cause) from cause
        return there

    def _is_there(self) -> bool:
        try:
            self._table()
        except Unavailable:
            raise
        except RetrievalError:
            return False
        return True

    def put(self, batch: Batch) -> None:
        assert batch.vectors is not None
        pa, schema = self._arrow, self._schema()
        numbers = pa.array(batch.vectors.astype(self._settings.vectors).reshape(-1))
        columns = [
            pa.array(range(batch.start, batch.end), pa.int64()),
            pa.array(batch.ids, pa.string()),
            pa.FixedSizeListArray.from_arrays(numbers, self._shape.dimension),
        ]
        table = self._table()
        try:
            if self._doubtful:
                table.delete(f"number >= {batch.start} and number < {batch.end}")
            table.add(pa.table(columns, schema=schema))
            self._added += 1
            if self._added % _GATHERED == 0:
                table.optimize(cleanup_older_than=_NOW)
        except Exception as cause:
            self._doubtful = True
            raise self._failed(cause) from cause

    def finish(self, report: Report) -> None:
        index = import_module("lancedb.index")
        forms = {"ivf_flat": index.IvfFlat, "ivf_rq": index.IvfRq}
        table = self._table()
        try:
            table.optimize(cleanup_older_than=_NOW)
            if (form := forms.get(self._settings.layout)) and self._shape.passages >= _LEAST:
                table.create_index("embedding", config=form(distance_type="dot", num_partitions=self._settings.lists))
        except Exception as cause:
            raise self._failed(cause) from cause

    # what it holds

    def count(self) -> int:
        table = self._table()
        try:
            return int(table.count_rows())
        except Exception as cause:
            raise self._failed(cause) from cause

    def canonical(self, batch: Batch) -> list[bytes]:
        assert batch.vectors is not None
        kept = batch.vectors.astype(self._settings.vectors)
        return [_described(batch.start + at, id_, kept[at]) for at, id_ in enumerate(batch.ids)]

    def held(self, start: int, end: int) -> list[bytes]:
        import numpy as np

        table = self._table()
        try:
            found = table.search().where(f"number >= {start} and number < {end}").limit(end - start + 1).to_arrow()
        except Exception as cause:
            raise self._failed(cause) from cause
        rows = sorted(found.select(["number", "id", "embedding"]).to_pylist(), key=lambda row: row["number"])
        return [
            _described(row["number"], row["id"], np.asarray(row["embedding"], dtype=self._settings.vectors))
            for row in rows
        ]

    # searching

    def dense(self, vectors: Any, topk: int) -> list[Hits]:
        table, lists = self._table(), self._settings.layout
        try:
            # A list of queries, also for one: then each hit has the number of its query.
            search = table.search(list(vectors), vector_column_name="embedding").distance_type("dot").limit(topk)
            if lists != "exact":
                search = search.nprobes(self._settings.probes)
            if lists == "ivf_rq":
                search = search.refine_factor(self._settings.refine)
            found = search.select(["number", "_distance"]).to_arrow()
        except Exception as cause:
            self._opened = None
            raise self._failed(cause) from cause
        queries = found["query_index"].to_pylist() if len(vectors) > 1 else [0] * len(found)
        return _lists(queries, found["number"].to_pylist(), found["_distance"].to_pylist(), len(vectors))


def _lists(queries: Sequence[int], rows: Sequence[int], distances: Sequence[float], count: int) -> list[Hits]:
    lists: list[Hits] = [[] for _ in range(count)]
    for query, row, distance in zip(queries, rows, distances, strict=True):
        lists[query].append((row, 1.0 - distance))  # the distance of `dot` is 1 - the inner product
    return [sorted(hits, key=lambda hit: (-hit[1], hit[0])) for hits in lists]


def _described(row: int, id_: str, vector: Any) -> bytes:
    return struct.pack(">q", row) + id_.encode() + b"\0" + vector.tobytes()


class LanceDBKind(EngineKind):
    """A table of LanceDB in a folder or in object storage, searched by vectors."""

    settings, format = LanceDBSettings, 1

    def connect(self, settings: LanceDBSettings, shape: Shape) -> Store:
        return _Table(settings, shape)


KIND = LanceDBKind()
