"""Files that survive a kill at any point: written beside their place, renamed when whole, known by their hash.

Every stage of the data pipeline writes through this module, so there is one answer to a full disk and one to a process
that died in the middle of a line.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from retrieval_server.passages import LFS_POINTER, whole_text
from s3_agent.errors import DataError

Report = Callable[[str, int, int], None]
"""Takes (what, done, total); total 0: not known."""

_CHUNK = 16 << 20
_FLUSH_LINES = 10_000
_SHOWN = 1 << 28


def silent(what: str, done: int, total: int) -> None:
    """Reports nothing."""


@contextmanager
def room_kept(folder: Path) -> Iterator[None]:
    """Turns the operating system's error for a full or read-only disk into a DataError; what was written stays."""
    try:
        yield
    except OSError as cause:
        if cause.errno is None:
            raise
        raise DataError(
            f"{cause.filename or folder} can not be written: {cause.strerror}",
            remedy="make room, or point `prepared` at another disk, then run the same command: what is done is kept",
        ) from cause


def partial_of(path: Path) -> Path:
    """Where a file grows until it is whole."""
    return path.with_name(path.name + ".partial")


def refuse_lfs_pointer(path: Path) -> None:
    """Raises DataError for a file that git-lfs has not fetched, of which only a pointer is there."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise DataError(
                f"{path} is a git-lfs pointer, not the file", remedy="fetch the file in its repository: git lfs pull"
            )


@contextmanager
def written_whole(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Gives what writes to a file that takes the place of `path` when the block has ended well.

    There is the old file or the new one, never a half, and a block that fails leaves nothing. Raises DataError where
    there is no room; an error of the block's other work stays what it is.
    """
    partial = partial_of(path)
    with room_kept(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = partial.open("wb")

    def write(data: bytes) -> None:
        with room_kept(path):
            file.write(data)

    try:
        yield write
        with room_kept(path):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    finally:
        with suppress(OSError):  # it writes what is left in memory, which is of no use any more
            file.close()


def write_whole(path: Path, text: str) -> None:
    """Write a small file in one piece. Raises DataError."""
    with written_whole(path) as write:
        write(text.encode())


def follow_umask(folder: Path) -> None:
    """Give a folder and all in it the permissions that the user's umask asks for.

    safetensors 0.8 writes files that nobody else can read, whatever the umask, and a copy keeps its original's.
    """
    umask = os.umask(0o077)
    os.umask(umask)
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def dump(value: Any) -> str:
    """JSON of one line that is the same for the same value, and text that UTF-8 can hold whatever the value has."""
    return whole_text(json.dumps(value, ensure_ascii=False, separators=(", ", ": ")))


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write JSON lines in one piece; how many. Raises DataError."""
    count = 0
    with room_kept(path.parent), written_whole(path) as write:
        for row in rows:
            write((dump(row) + "\n").encode())
            count += 1
    return count


def cut_torn_line(path: Path) -> int:
    """Cut what follows the last newline of a file; how many lines are left, 0 for a file that is not there."""
    if not path.exists():
        return 0
    lines = end = position = 0
    with path.open("r+b") as file:
        while chunk := file.read(_CHUNK):
            if (last := chunk.rfind(b"\n")) >= 0:
                end = position + last + 1
            lines += chunk.count(b"\n")
            position += len(chunk)
        file.truncate(end)
    return lines


@contextmanager
def grown(path: Path, *, made_of: Mapping[str, Any]) -> Iterator[Path]:
    """Gives the partial file of `path`, which becomes `path` at the end; what a killed call left in it is still there.

    `made_of` are its inputs: a partial file with other inputs is removed. Raises DataError for a full disk.
    """
    partial, goal = partial_of(path), path.with_name(path.name + ".made-of")
    with room_kept(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not goal.exists() or goal.read_text(encoding="utf-8") != dump(made_of):
            partial.unlink(missing_ok=True)
            write_whole(goal, dump(made_of))
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        goal.unlink(missing_ok=True)


def grow_rows(path: Path, rows: Iterable[Mapping[str, Any]], *, made_of: Mapping[str, Any], report: Report) -> int:
    """Write JSON lines that may take hours: a killed call continues after the lines that it had written.

    `rows` must come in the same order each time. Returns the number of rows; raises DataError.
    """
    with grown(path, made_of=made_of) as partial:
        done = cut_torn_line(partial)
        with partial.open("a", encoding="utf-8", buffering=1 << 20) as file:
            for row in islice(rows, done, None):
                file.write(dump(row) + "\n")
                done += 1
                if done % _FLUSH_LINES == 0:
                    report(f"writing {path.name}", done, 0)
    return done


def join_parts(path: Path, parts: Sequence[Path], *, made_of: Mapping[str, Any], report: Report) -> int:
    """Write the parts of a file one after another; how many bytes. A killed call continues where it was."""
    total = sum(part.stat().st_size for part in parts)
    with grown(path, made_of=made_of) as partial, partial.open("ab") as joined:
        begin = 0
        for part in parts:
            size = part.stat().st_size
            with part.open("rb") as file:
                file.seek(min(max(joined.tell() - begin, 0), size))
                while chunk := file.read(_CHUNK):
                    joined.write(chunk)
                    report(f"writing {path.name}", joined.tell(), total)
            begin += size
    return total


def sha256_of(path: Path, report: Report = silent) -> str:
    """The hash of a file's bytes, all of them read."""
    digest, done, size = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            if size > _SHOWN:
                report(f"hashing {path.name}", done, size)
    return digest.hexdigest()


class Hashes:
    """Hashes of files, remembered in `record` as long as a file keeps its size and its time of change."""

    def __init__(self, record: Path, *, forget: bool = False) -> None:
        self._record = record
        self._known: dict[str, list[Any]] = {}
        if not forget and record.exists():
            try:
                self._known = json.loads(record.read_text(encoding="utf-8"))
            except ValueError:
                self._known = {}  # it only saves time

    def of(self, path: Path, report: Report = silent) -> str | None:
        """The hash of `path`; None when there is no such file."""
        try:
            stat = path.stat()
        except FileNotFoundError:
            return None
        key, seen = str(path.resolve()), [stat.st_size, stat.st_mtime_ns]
        if self._known.get(key, [])[:2] != seen:
            self._known[key] = [*seen, sha256_of(path, report)]
            write_whole(self._record, json.dumps(self._known, indent=1))
        return self._known[key][2]
