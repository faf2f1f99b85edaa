"""Keeps the answers of a provider in one SQLite file, each under the hash of its request without the key.

Several servers may record into one file at a time; the first answer to a request stays, so that a replay is always the
same, also that of a query that the provider rejected. A replay reads the file as it was when it was opened, and serves
its pages: the answers themselves are not read again. `digest` identifies the kept answers and pages, whatever the order
of the answers.
"""

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from retrieval_server.corpus import Report, silent
from retrieval_server.errors import QueryError, RetrievalError
from retrieval_server.schemas import Document

STORE = "answers.sqlite"
FORMAT = 2
_BUSY_S = 60.0
_MODULUS = 1 << 256
_TABLES = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, request TEXT NOT NULL, body TEXT NOT NULL, refused TEXT, fetched_at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pages (
    row INTEGER PRIMARY KEY, key TEXT NOT NULL, id TEXT NOT NULL, document TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS pages_of_answer ON pages (key);
CREATE INDEX IF NOT EXISTS pages_by_id ON pages (id);
"""


def request_of(provider: str, version: int, query: str, results: int, options: Mapping[str, Any]) -> str:
    """A request without its key, as one text; equal texts get equal answers."""
    told = {"provider": provider, "version": version, "query": query, "results": results, "options": dict(options)}
    return json.dumps(told, sort_keys=True, ensure_ascii=False)


def key_of(request: str) -> str:
    """The name of a request in a store."""
    return sha256(request.encode()).hexdigest()


_Page = tuple[str, str]
"""A page's id, and the page as JSON."""


def _digest_of(key: str, body: str, refused: str | None, pages: Sequence[_Page]) -> int:
    return int.from_bytes(sha256(json.dumps([key, body, refused, pages]).encode()).digest())


def recorded_digest(folder: Path) -> str:
    """The digest of the answers in a folder. Raises RetrievalError if there are none."""
    with closing(Store(folder, writes=False)) as store:
        return store.digest


class Store:
    """The answers in a folder. Threads may share it."""

    def __init__(self, folder: Path, *, writes: bool = True) -> None:
        self._lock = threading.Lock()
        self._path = folder / STORE
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
        elif not self._path.is_file():
            raise RetrievalError(
                f"there are no recorded answers in {folder}", remedy="record them first: `mode: record` in the settings"
            )
        mode = "rwc" if writes else "ro" if os.access(folder, os.W_OK) else "ro&immutable=1"
        name = f"{self._path.absolute().as_uri()}?mode={mode}"
        with self._readable():
            self._db = sqlite3.connect(
                name, uri=True, timeout=_BUSY_S, isolation_level=None, check_same_thread=False, cached_statements=64
            )
            if writes:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=NORMAL")
                self._db.executescript(_TABLES)
                self._db.execute("INSERT OR IGNORE INTO meta VALUES ('format', ?)", (FORMAT,))
            else:
                self._db.execute("BEGIN")  # a recording beside this replay adds nothing to it
            found = self._meta("format")
        if found != FORMAT:
            raise RetrievalError(
                f"{self._path} has the format {found} of another release; this one reads {FORMAT}",
                remedy="record the answers again into another folder",
            )

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as cause:
            raise RetrievalError(
                f"the recorded answers {self._path} can not be used: {cause}",
                remedy="check the disk and the rights of the folder, or take a copy that is whole",
            ) from cause

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._lock, self._readable():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise

    def _meta(self, name: str) -> Any:
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return row and row[0]

    @property
    def digest(self) -> str:
        """Identifies the kept answers: 64 hexadecimal digits."""
        with self._lock, self._readable():
            return self._meta("digest") or f"{0:064x}"

    @property
    def answers(self) -> int:
        """The number of kept answers."""
        with self._lock, self._readable():
            return self._db.execute("SELECT count(*) FROM answers").fetchone()[0]

    @property
    def calls(self) -> int:
        """The paid requests that were sent so far."""
        with self._lock, self._readable():
            return self._meta("calls") or 0

    def pay(self, budget: int | None) -> bool:
        """Count one paid request before it is sent; False if the budget is spent."""
        with self._writing():
            calls = self._meta("calls") or 0
            if budget is not None and calls >= budget:
                return False
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('calls', ?)", (calls + 1,))
        return True

    def verify(self, report: Report = silent) -> None:
        """Read every answer. Raises RetrievalError if they are not what was recorded."""
        total, digest, pages, whole = self.answers, 0, 0, True
        with self._lock, self._readable():
            answers = self._db.execute("SELECT key, request, body, refused FROM answers")
            for done, (key, request, body, refused) in enumerate(answers):
                if done % 1000 == 0:
                    report("reading the recorded answers", done, total)
                own = self._pages(key)
                digest, pages = (digest + _digest_of(key, body, refused, own)) % _MODULUS, pages + len(own)
                whole = whole and key == key_of(request)
            told = self._meta("digest") or f"{0:064x}"
            whole = whole and pages == self._db.execute("SELECT count(*) FROM pages").fetchone()[0]
        if not whole or f"{digest:064x}" != told:
            raise RetrievalError(
                f"the recorded answers {self._path} were changed after they were recorded",
                remedy="take a copy that is whole, or record them again",
            )

    def _pages(self, key: str) -> list[_Page]:
        return self._db.execute("SELECT id, document FROM pages WHERE key = ? ORDER BY row", (key,)).fetchall()

    def rows(self, key: str) -> list[int] | None:
        """The rows of an answer's pages, best first; None if the answer is not kept.

        Raises QueryError if the provider rejected the query.
        """
        with self._lock, self._readable():
            found = self._db.execute("SELECT refused FROM answers WHERE key = ?", (key,)).fetchone()
            if found is None:
                return None
            if found[0] is not None:
                raise QueryError(found[0])
            return [row for (row,) in self._db.execute("SELECT row FROM pages WHERE key = ? ORDER BY row", (key,))]

    def keep(
        self, key: str, request: str, body: str, pages: Sequence[Document], refused: str | None = None
    ) -> list[int]:
        """Keep an answer and its pages, or why the query is `refused`, unless it is kept already; the rows of the kept
        pages. Raises QueryError as `rows`."""
        own = [(page.id, page.model_dump_json()) for page in pages]
        with self._writing():
            known = self._db.execute("SELECT 1 FROM answers WHERE key = ?", (key,)).fetchone()
            if known is None:
                self._db.execute(
                    "INSERT INTO answers VALUES (?, ?, ?, ?, ?)", (key, request, body, refused, time.time())
                )
                first = self._db.execute("SELECT coalesce(max(row), -1) + 1 FROM pages").fetchone()[0]
                rows = [(row, key, *page) for row, page in enumerate(own, first)]
                self._db.executemany("INSERT INTO pages VALUES (?, ?, ?, ?)", rows)
                digest = (int(self._meta("digest") or "0", 16) + _digest_of(key, body, refused, own)) % _MODULUS
                self._db.execute("INSERT OR REPLACE INTO meta VALUES ('digest', ?)", (f"{digest:064x}",))
        return self.rows(key) or []

    def __len__(self) -> int:
        with self._lock, self._readable():
            return self._db.execute("SELECT coalesce(max(row), -1) + 1 FROM pages").fetchone()[0]

    def __getitem__(self, row: int) -> Document:
        with self._lock, self._readable():
            found = self._db.execute("SELECT document FROM pages WHERE row = ?", (row,)).fetchone()
        if found is None:
            raise IndexError(row)
        return Document.model_validate_json(found[0])

    def row_of(self, name: str) -> int | None:
        """The row of the first kept page with that id."""
        with self._lock, self._readable():
            found = self._db.execute("SELECT min(row) FROM pages WHERE id = ?", (name,)).fetchone()
        return found[0]

    def close(self) -> None:
        """Close the file, so that it can be copied by itself."""
        with self._lock, suppress(sqlite3.Error):
            self._db.close()
