"""Writes files that survive a kill at any point: to a partial file first, renamed when complete, known by their hash.

Every stage of the data pipeline writes through this module, so a full disk and a process that died in the middle of a
line are handled in one place.
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
"""Called with (what, done, total); total 0: unknown."""

_CHUNK = 16 << 20
_FLUSH_LINES = 10_000
_SHOWN = 1 << 28


def silent(what: str, done: int, total: int) -> None:
    """Reports nothing."""


@contextmanager
def room_kept(folder: Path) -> Iterator[None]:
    """Convert the operating system's error for a full or read-only disk into a DataError; written data stays."""
    try:
        yield
    except OSError as cause:
        if cause.errno is None:
            raise
        raise DataError(
            f"{cause.filename or folder} can not be written: {cause.strerror}",
            remedy="make room, or point `prepared` at another disk, then run the same command: finished work is kept",
        ) from cause


def partial_of(path: Path) -> Path:
    """The path of a file until it is complete."""
    return path.with_name(path.name + ".partial")


def refuse_lfs_pointer(path: Path) -> None:
    """Raises DataError for a file that git-lfs has not fetched, so that only its pointer exists."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise DataError(
                f"{path} is a git-lfs pointer, not the file", remedy="fetch the file in its repository: git lfs pull"
            )


def keep_private(folder: Path) -> None:
    """Make a folder that only its owner can enter and that git ignores, for texts that may not be published."""
    with room_kept(folder):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        (folder / ".gitignore").write_text("*\n", encoding="utf-8")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, mode=0o600)


@contextmanager
def written_whole(path: Path, *, private: bool = False) -> Iterator[Callable[[bytes], None]]:
    """Yields a file object for a file that replaces `path` if the block ends without an error.

    At any time the old or the new file exists complete, and a block that fails leaves nothing. Only the owner can read
    a `private` file. Raises DataError if the disk is full; other errors of the block pass unchanged.
    """
    partial = partial_of(path)
    with room_kept(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)  # it may have other permissions
        file = open(partial, "wb", opener=_private if private else None)  # noqa: SIM115

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
        with suppress(OSError):  # closing writes the buffered rest, which is no longer needed
            file.close()


def write_whole(path: Path, text: str, *, private: bool = False) -> None:
    """Write a small file atomically. Only the owner can read a `private` file. Raises DataError."""
    with written_whole(path, private=private) as write:
        write(text.encode())


def follow_umask(folder: Path) -> None:
    """Give a folder and everything in it the permissions of the user's umask.

    safetensors 0.8 writes files that only their owner can read, whatever the umask, and a copy keeps permissions.
    """
    umask = os.umask(0o077)
    os.umask(umask)
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def dump(value: Any) -> str:
    """One line of JSON: equal for equal values, and always text that UTF-8 can encode."""
    return whole_text(json.dumps(value, ensure_ascii=False, separators=(", ", ": ")))


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], *, private: bool = False) -> int:
    """Write JSON lines atomically; return their number. Only the owner can read a `private` file. Raises DataError."""
    count = 0
    with room_kept(path.parent), written_whole(path, private=private) as write:
        for row in rows:
            write((dump(row) + "\n").encode())
            count += 1
    return count


def cut_torn_line(path: Path) -> int:
    """Remove everything after the last newline of a file; return the lines left, 0 for a missing file."""
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
    """Yields the partial file of `path`, which becomes `path` at the end; it keeps what a killed call wrote.

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
    """Write JSON lines that may take hours; after a kill, the next call continues behind the lines written.

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
    """Write the pieces of a file one after another; return the bytes. After a kill, the next call continues."""
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
    """The hash of a file; reads all of its bytes."""
    digest, done, size = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            if size > _SHOWN:
                report(f"hashing {path.name}", done, size)
    return digest.hexdigest()


class Hashes:
    """Hashes of files, remembered in `record` as long as a file's size and modification time stay the same."""

    def __init__(self, record: Path, *, forget: bool = False) -> None:
        self._record = record
        self._known: dict[str, list[Any]] = {}
        if not forget and record.exists():
            try:
                self._known = json.loads(record.read_text(encoding="utf-8"))
            except ValueError:
                self._known = {}  # the record only saves time

    def of(self, path: Path, report: Report = silent) -> str | None:
        """The hash of `path`; None if there is no such file."""
        try:
            stat = path.stat()
        except FileNotFoundError:
            return None
        key, seen = str(path.resolve()), [stat.st_size, stat.st_mtime_ns]
        if self._known.get(key, [])[:2] != seen:
            self._known[key] = [*seen, sha256_of(path, report)]
            write_whole(self._record, json.dumps(self._known, indent=1))
        return self._known[key][2]
