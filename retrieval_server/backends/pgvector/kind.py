"""Postgres as an engine: vectors with the extension pgvector, BM25 with pg_textsearch where the server has it.

A table holds a row for each passage. pgvector's `<#>` is the negative inner product. pg_textsearch multiplies Lucene's
score by k1 + 1, keeps lengths in one byte, and leaves passages without a word out of the statistics.
"""

import re
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from retrieval_server.backends.base import Hits
from retrieval_server.backends.engines.kind import EngineKind
from retrieval_server.backends.engines.settings import EngineSettings
from retrieval_server.backends.engines.store import Batch, Shape, Store
from retrieval_server.corpus import Report
from retrieval_server.errors import RetrievalError, Unavailable

MOST_CANDIDATES = 1000  # the largest hnsw.ef_search
_LETTERS = re.compile("[a-z]+")
_CODED = "zq"  # begins a word that is coded


class PgvectorSettings(EngineSettings, frozen=True):
    """A table in Postgres. `url`: `postgresql://USER@HOST:PORT/DATABASE`; the password is in PGPASSWORD or ~/.pgpass.

    `layout`: `exact` compares every vector, `hnsw` uses a graph, `binary` a graph of signs whose `candidates` are
    scored again with the vectors.
    """

    kind: Literal["pgvector"] = "pgvector"
    layout: Literal["exact", "hnsw", "binary"] = "hnsw"
    vectors: Literal["float16", "float32"] = "float16"
    hnsw_links: int = Field(default=16, ge=2, le=100)
    ef_construction: int = Field(default=64, ge=4, le=1000)
    build_memory: str = Field(default="", pattern=r"^(\d+[kMGT]B)?$", description="maintenance_work_mem of the build")
    # used only by the search
    ef_search: int = Field(default=200, ge=1, le=MOST_CANDIDATES)
    candidates: int = Field(default=200, ge=1, le=MOST_CANDIDATES, description="binary: scored again from the vectors")
    connections: int = Field(default=4, ge=1, description="connections that share the queries of a batch")

    built_with: ClassVar = ("layout", "vectors", "hnsw_links", "ef_construction")
    searched_with: ClassVar = ("ef_search", "candidates")
    of_vectors: ClassVar = (*built_with, *searched_with)

    @field_validator("url")
    @classmethod
    def _without_password(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("postgresql", "postgres"):
            raise ValueError("`url` is not postgresql://USER@HOST:PORT/DATABASE")
        if parts.password or re.search(r"[?&]password=", url):
            raise ValueError("`url` has a password: leave it out, and set the environment variable PGPASSWORD")
        return url

    def unused(self) -> dict[str, str]:
        of_layout = {
            "exact": ("hnsw_links", "ef_construction", "ef_search", "candidates"),
            "hnsw": ("candidates",),
            "binary": ("ef_search",),
        }
        return dict.fromkeys(of_layout[self.layout], f"layout: {self.layout}") | super().unused()

    def check_topk(self, topk: int) -> None:
        """Raise ValueError if a graph returns fewer than `topk` passages."""
        super().check_topk(topk)
        wanted = self.fused if self.search == "hybrid" else topk
        if self.dense and self.layout != "exact" and _depth(self) < wanted:
            name = "candidates" if self.layout == "binary" else "ef_search"
            raise ValueError(f"`{name}` is {_depth(self)}, below the {wanted} requested passages: raise it")


def _depth(settings: PgvectorSettings) -> int:
    return settings.candidates if settings.layout == "binary" else settings.ef_search


def _word(term: str) -> str:
    """A term as one word of Postgres's parser: letters stay, anything else becomes the letters of its UTF-8 bytes."""
    if _LETTERS.fullmatch(term) and not term.startswith(_CODED):
        return term
    return _CODED + "".join(chr(ord("a") + half) for byte in term.encode() for half in (byte >> 4, byte & 15))


class _Table(Store):
    def __init__(self, settings: PgvectorSettings, shape: Shape) -> None:
        try:
            import pgvector.psycopg
            import psycopg
            from psycopg import sql
        except ImportError as cause:
            raise RetrievalError(
                f"`kind: {settings.kind}` needs the packages psycopg and pgvector: {cause}",
                remedy="install them: pip install 's3-agent[pgvector]'",
            ) from cause
        self._psycopg, self._pgvector, self._sql = psycopg, pgvector.psycopg, sql
        self._settings, self._shape = settings, shape
        self._idle: list[Any] = []
        self._lock = threading.Lock()
        self._workers = ThreadPoolExecutor(settings.connections, thread_name_prefix="postgres")
        half = settings.vectors == "float16"
        self._type, self._operators = ("halfvec", "halfvec_ip_ops") if half else ("vector", "vector_ip_ops")
        self._words = shape.name + "_words"
        self._names = {
            "table": sql.Identifier(shape.name),
            "words": sql.Identifier(self._words),
            "words_name": sql.Literal(self._words),
            "graph": sql.Identifier(shape.name + "_graph"),
            "type": sql.SQL(self._type),
            "operators": sql.SQL(self._operators),
            "dimension": sql.Literal(shape.dimension),
        }

    # connections

    def _connect(self) -> Any:
        connection = self._psycopg.connect(
            self._settings.url, autocommit=True, connect_timeout=max(2, round(self._settings.timeout_s))
        )
        connection.execute(
            "select set_config('statement_timeout', %s, false)", [f"{self._settings.timeout_s * 1000:.0f}"]
        )
        if connection.execute("select 1 from pg_extension where extname = 'vector'").fetchone():
            self._pgvector.register_vector(connection)
            connection.execute("select set_config('hnsw.ef_search', %s, false)", [str(_depth(self._settings))])
        return connection

    @contextmanager
    def _connection(self) -> Iterator[Any]:
        """A connection of the pool. One that fails is closed; the errors become RetrievalError and Unavailable."""
        connection = None
        try:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            connection = connection or self._connect()
            yield connection
            with self._lock:
                self._idle.append(connection)
        except BaseException as cause:
            if connection is not None:
                connection.close()
            if not isinstance(cause, self._psycopg.Error):
                raise
            self._close_idle()  # a server that was restarted has closed them too
            raise self._error(cause) from cause

    def _error(self, cause: BaseException) -> RetrievalError:
        place = f"Postgres at {self._settings.url}"
        reason = str(cause).strip().replace("\n", "; ")
        passing = isinstance(cause, self._psycopg.OperationalError | self._psycopg.InterfaceError)
        if isinstance(cause, self._psycopg.errors.UndefinedTable):
            remedy = "build the index, or give the `url` and `name` that it was built with"
            return RetrievalError(f"{place} has no table {self._shape.name}: {reason}", remedy=remedy)
        if passing and "authentication failed" not in reason and "no password supplied" not in reason:
            remedy = "start it, or correct `url`; see the message"
            return Unavailable(f"{place} does not answer: {reason}", remedy=remedy)
        return RetrievalError(f"{place} refused: {reason}", remedy="see the message and Postgres's log")

    def _run(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._connection() as connection:
            done = connection.execute(self._sql.SQL(statement).format(**self._names), values or None)
            return done.fetchall() if done.description else []

    def close(self) -> None:
        self._workers.shutdown(wait=True)
        self._close_idle()

    def _close_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def version(self) -> str:
        [[server]] = self._run("show server_version")
        wanted = ["vector"] * self._settings.dense + ["pg_textsearch"] * self._settings.lexical
        found = self._run(
            "select extname, extversion from pg_extension where extname = any(%s) order by 1 desc", [wanted]
        )
        return ", ".join([f"PostgreSQL {server.split()[0]}", *(" ".join(row) for row in found)])

    # filling

    def _extension(self, name: str, remedy: str) -> None:
        if self._run("select 1 from pg_extension where extname = %s", [name]):
            return
        try:
            self._run(f"create extension if not exists {name}")
        except Unavailable:
            raise
        except RetrievalError as cause:
            raise RetrievalError(f"the extension {name} is missing: {cause}", remedy=remedy) from cause

    def prepare(self, *, fresh: bool) -> bool:
        columns = ["number bigint primary key", "id text not null"]
        if self._settings.dense:
            self._extension("vector", "install pgvector on the server, or let an administrator create the extension")
            columns.append("embedding {type}({dimension}) not null")
        if self._settings.lexical:
            self._extension(
                "pg_textsearch",
                "install pg_textsearch, and name it in shared_preload_libraries; or set `search: dense`",
            )
            columns.append("terms text not null")
        self._close_idle()  # opened before there was a type to register
        if fresh:  # rows replaced in an indexed table would stay in pg_textsearch's statistics
            self._run("drop table if exists {table}")
        there = self._run("select to_regclass(%s)", [self._shape.name])[0][0] is not None
        self._run(f"create table if not exists {{table}} ({', '.join(columns)})")
        return there

    def put(self, batch: Batch) -> None:
        names = ["number", "id"] + ["embedding"] * self._settings.dense + ["terms"] * self._settings.lexical
        types = ["int8", "text"] + [self._type] * self._settings.dense + ["text"] * self._settings.lexical
        format_ = self._sql.SQL
        copy_in = format_("copy {table} ({columns}) from stdin (format binary)").format(
            table=self._names["table"], columns=format_(", ").join(map(self._sql.Identifier, names))
        )
        with self._connection() as connection, connection.transaction(), connection.cursor() as cursor:
            cursor.execute(
                format_("delete from {table} where number >= %s and number < %s").format(**self._names),
                [batch.start, batch.end],
            )
            with cursor.copy(copy_in) as copy:
                copy.set_types(types)
                for at, id_ in enumerate(batch.ids):
                    row: list[Any] = [batch.start + at, _text(id_)]
                    if batch.vectors is not None:
                        row.append(self._vector(batch.vectors[at]))
                    if batch.terms is not None:
                        row.append(" ".join(map(_word, batch.terms[at])))
                    copy.write_row(row)

    def _vector(self, numbers: Any) -> Any:
        import pgvector

        return pgvector.HalfVector(numbers) if self._type == "halfvec" else pgvector.Vector(numbers)

    def finish(self, report: Report) -> None:
        statements = []
        if self._settings.dense and self._settings.layout != "exact":
            indexed = {
                "hnsw": "embedding {operators}",
                "binary": "(binary_quantize(embedding)::bit({dimension})) bit_hamming_ops",
            }[self._settings.layout]
            statements.append(
                f"create index if not exists {{graph}} on {{table}} using hnsw ({indexed}) with "
                f"(m = {self._settings.hnsw_links}, ef_construction = {self._settings.ef_construction})"
            )
        if self._settings.lexical:
            statements.append(
                "create index if not exists {words} on {table} using bm25 (terms) with "
                f"(text_config = 'simple', k1 = {self._settings.k1}, b = {self._settings.b})"
            )
        with self._connection() as connection:
            connection.execute("set statement_timeout = 0")
            # A build that was killed may still be creating the index in the server: wait for it.
            connection.execute("select pg_advisory_lock(hashtext(%s))", [self._shape.name])
            if self._settings.build_memory:
                connection.execute(
                    "select set_config('maintenance_work_mem', %s, false)", [self._settings.build_memory]
                )
            for statement in (*statements, "analyze {table}"):
                connection.execute(self._sql.SQL(statement).format(**self._names))
            connection.execute("select pg_advisory_unlock(hashtext(%s))", [self._shape.name])
            connection.execute(
                "select set_config('statement_timeout', %s, false)", [f"{self._settings.timeout_s * 1000:.0f}"]
            )

    # what it holds

    def count(self) -> int:
        return int(self._run("select count(*) from {table}")[0][0])

    def canonical(self, batch: Batch) -> list[bytes]:
        numbers = None if batch.vectors is None else batch.vectors.astype(self._settings.vectors)
        return [
            _described(
                batch.start + at,
                _text(id_),
                None if numbers is None else numbers[at],
                None if batch.terms is None else " ".join(map(_word, batch.terms[at])),
            )
            for at, id_ in enumerate(batch.ids)
        ]

    def held(self, start: int, end: int) -> list[bytes]:
        columns = "number, id, " + ("embedding" if self._settings.dense else "null") + ", "
        columns += "terms" if self._settings.lexical else "null"
        rows = self._run(
            f"select {columns} from {{table}} where number >= %s and number < %s order by number", [start, end]
        )
        return [
            _described(number, id_, None if vector is None else vector.to_numpy().astype(self._settings.vectors), terms)
            for number, id_, vector, terms in rows
        ]

    # searching

    def dense(self, vectors: Any, topk: int) -> list[Hits]:
        def search(queries: Any) -> list[Hits]:
            asked = [self._vector(query).to_text() for query in queries]
            return self._lists(self._run(self._dense_statement(), [asked, *self._limits(topk)]), len(queries))

        return self._shared(search, vectors)

    def _limits(self, topk: int) -> list[int]:
        return [max(topk, self._settings.candidates), topk] if self._settings.layout == "binary" else [topk]

    def _dense_statement(self) -> str:
        near, graph = "t.embedding <#> q.v", "binary_quantize(t.embedding)::bit({dimension})"
        source = "{table} t"
        if self._settings.layout == "binary":
            source = f"(select * from {{table}} t order by {graph} <~> q.signs limit %s) t"
        return f"""
            with q as materialized (
                select n, v, binary_quantize(v)::bit({{dimension}}) signs from (
                    select n, v::{{type}}({{dimension}}) v from unnest(%s::text[]) with ordinality as asked (v, n)
                ) read
            )
            select q.n, found.number, found.score from q cross join lateral (
                select t.number, -({near}) as score from {source} order by {near} limit %s
            ) found"""

    def lexical(self, queries: Sequence[Counter[str]], topk: int) -> list[Hits]:
        scale = 1.0 + self._settings.k1

        statement = (
            "select number, -(terms <@> to_bm25query(%s, {words_name})) as score from {table} "
            "order by terms <@> to_bm25query(%s, {words_name}) limit %s"
        )
        query = self._sql.SQL(statement).format(**self._names)

        def search(chosen: Sequence[Counter[str]]) -> list[Hits]:
            lists = []
            with self._connection() as connection, connection.transaction():
                # For a small table the planner would score every row in place of asking the index.
                connection.execute("set local enable_seqscan = off")
                for terms in chosen:
                    words = " ".join(map(_word, terms.elements()))
                    rows = connection.execute(query, [words, words, topk]).fetchall()
                    lists.append([(number, score / scale) for number, score in rows if score > 0])
            return lists

        return self._shared(search, queries)

    def _lists(self, rows: Sequence[Any], queries: int) -> list[Hits]:
        lists: list[Hits] = [[] for _ in range(queries)]
        for query, number, score in rows:
            lists[query - 1].append((number, score))
        return [sorted(hits, key=lambda hit: (-hit[1], hit[0])) for hits in lists]

    def _shared(self, search: Callable[[Any], list[Hits]], queries: Any) -> list[Hits]:
        """The lists of all queries; the connections share them."""
        size = -(-len(queries) // self._settings.connections)
        parts = [queries[start : start + size] for start in range(0, len(queries), size)]
        if len(parts) == 1:
            return search(queries)
        return [hits for lists in self._workers.map(search, parts) for hits in lists]


def _text(text: str) -> str:
    """Postgres's texts hold no character 0."""
    return text.replace("\0", "\ufffd")


def _described(number: int, id_: str, vector: Any | None, terms: str | None) -> bytes:
    head = struct.pack(">q", number) + id_.encode() + b"\0"
    numbers = b"" if vector is None else vector.tobytes()
    return head + numbers + b"\0" + (terms or "").encode()


class PgvectorKind(EngineKind):
    """A table in Postgres with pgvector; any client can read it."""

    settings, format = PgvectorSettings, 1

    def connect(self, settings: PgvectorSettings, shape: Shape) -> Store:
        return _Table(settings, shape)

    def most(self, settings: PgvectorSettings) -> int:
        graph = settings.dense and settings.layout != "exact"
        return _depth(settings) if graph else super().most(settings)


KIND = PgvectorKind()
