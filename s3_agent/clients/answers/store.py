"""Replies in an SQLite file that all worker processes share: rows of text that are read only as data.

A store may be handed over with prepared data, so nothing in it is ever unpickled or run: a file whose tables are not
exactly ours is not read, and a row that holds no text is not a reply. The calls block; `answer_cache` makes them in a
thread.
"""

import fcntl
import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

FILE = "cache.db"
ASIDE = "cache-of-an-earlier-version.db"
TABLES = {
    "replies": "CREATE TABLE replies (number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, reply TEXT NOT NULL, "
    "kept REAL NOT NULL)",
    "leases": "CREATE TABLE leases (key TEXT NOT NULL UNIQUE, holder TEXT NOT NULL, ends REAL NOT NULL)",
}
_OURS = {("table", name, statement) for name, statement in TABLES.items()}
_EARLIER = {"Cache", "Settings"}
"""Tables of the library that earlier versions used. It unpickles what it reads."""
FORGOTTEN_AT_A_TIME = 256


class ForeignStoreError(sqlite3.DatabaseError):
    """The file holds tables, views or triggers that are not ours."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A kept reply, and when it was kept, in Unix seconds."""

    reply: str
    at: float


def _schema(file: sqlite3.Connection) -> set[tuple[str, str, str]]:
    with closing(file.execute("SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL")) as rows:
        return set(rows)


def _is_earlier(path: Path, wait_s: float) -> bool:
    with closing(sqlite3.connect(path, timeout=wait_s, isolation_level=None)) as file:
        return {name for _, name, _ in _schema(file)} >= _EARLIER


def leave_aside(folder: Path, *, wait_s: float) -> bool:
    """Move the store of an earlier version out of the way, unread; whether there was one."""
    path = folder / FILE
    if not path.exists() or not _is_earlier(path, wait_s):
        return False
    with (folder / ".moving").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_earlier(path, wait_s):  # else another process was first, and this is the new one
            for suffix in ("", "-wal", "-shm"):
                with suppress(FileNotFoundError):
                    (folder / (FILE + suffix)).replace(folder / (ASIDE + suffix))
    return True


class AnswerStore:
    """The file in `folder`, of at most about `max_bytes`, for one thread. Calls raise sqlite3.Error and OSError.

    A call waits up to `wait_s` seconds for a file that another process has locked.
    """

    def __init__(self, folder: Path, *, max_bytes: int, wait_s: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.left_aside = leave_aside(folder, wait_s=wait_s)
        self.written = 0
        """How many times something was written."""
        self._max_bytes = max_bytes
        path = folder / FILE
        self._file = sqlite3.connect(path, timeout=wait_s, isolation_level=None)
        try:
            self._file.execute("PRAGMA trusted_schema = OFF")
            with suppress(sqlite3.OperationalError):  # another process does it now, or the file system can not
                self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("PRAGMA synchronous = NORMAL")
            if not _schema(self._file):
                with self._writing():
                    for statement in TABLES.values():
                        self._file.execute(statement.replace("TABLE", "TABLE IF NOT EXISTS", 1))
            if _schema(self._file) != _OURS:
                raise ForeignStoreError(f"{path} is not a store of replies: its tables are not ours")
        except BaseException:
            self._file.close()
            raise

    @contextmanager
    def _writing(self) -> Iterator[None]:
        self._file.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._file.execute("ROLLBACK")
            raise
        self._file.execute("COMMIT")
        self.written += 1

    def kept(self, key: str) -> Kept | None:
        """The kept reply, None where there is none."""
        row = self._file.execute("SELECT reply, kept FROM replies WHERE key = ?", (key,)).fetchone()
        if row is None or not isinstance(row[0], str) or not isinstance(row[1], float):
            return None
        try:
            reply = json.loads(row[0])
        except (ValueError, RecursionError):
            return None
        return Kept(reply, row[1]) if isinstance(reply, str) else None

    def claim(self, key: str, holder: str, *, seconds: float) -> tuple[Kept | None, bool]:
        """The kept reply; without one, whether `holder` may ask the model.

        It may when no other process is asking, or when that process has not renewed its lease in time.
        """
        with self._writing():
            if (kept := self.kept(key)) is not None:
                return kept, False
            now = time.time()
            taken = self._file.execute(
                "INSERT INTO leases VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET holder = excluded.holder, "
                "ends = excluded.ends WHERE typeof(ends) != 'real' OR ends < ? OR ends > ?",
                (key, holder, now + seconds, now, now + 2 * seconds),  # a clock that was set back ends a lease too
            )
            return None, taken.rowcount > 0

    def renew(self, key: str, holder: str, *, seconds: float) -> None:
        """Hold a lease for longer."""
        with self._writing():
            self._file.execute(
                "UPDATE leases SET ends = ? WHERE key = ? AND holder = ?", (time.time() + seconds, key, holder)
            )

    def end(self, key: str, holder: str, reply: str | None) -> None:
        """End a lease, and keep the reply if there is one."""
        with self._writing():
            if reply is not None:
                self._file.execute(
                    "INSERT OR REPLACE INTO replies (key, reply, kept) VALUES (?, ?, ?)",
                    (key, json.dumps(reply), time.time()),
                )
            self._file.execute("DELETE FROM leases WHERE key = ? AND holder = ?", (key, holder))
            while reply is not None and self._bytes() > self._max_bytes and self._forget():
                pass

    def _bytes(self) -> int:
        pages, free, size = (
            self._file.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    def _forget(self) -> bool:
        """Forget the oldest replies; False when there are none."""
        oldest = "SELECT number FROM replies ORDER BY number LIMIT ?"
        return (
            self._file.execute(f"DELETE FROM replies WHERE number IN ({oldest})", (FORGOTTEN_AT_A_TIME,)).rowcount > 0
        )
