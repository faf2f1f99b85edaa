"""Keeps the results of the stages of an evaluation, each under a key of everything that it depends on.

`pipeline` reads and writes through it. A line is appended as soon as a stage is done, so a `kill -9` loses no result
that was paid for. A kept result is never computed again, and a result whose inputs changed is never found. Values stay
on the disk; only their places are in memory.
"""

import asyncio
import fcntl
import hashlib
import json
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import structlog

from s3_agent.data.files.appended import AppendedLines
from s3_agent.errors import ConfigError
from s3_agent.evaluation.compact import Places

log = structlog.get_logger()

_HEAD = b'{"key":"'
_KEY_CHARACTERS = 32
_VALUE = b'","value":'
_VALUE_AT = len(_HEAD) + _KEY_CHARACTERS + len(_VALUE)

Made = dict[str, Any]


class NotKept(Exception):
    """The result of a stage is not kept, and it may not be computed now."""


def key_of(*parts: Any) -> str:
    """A key of everything in `parts`, which must be JSON."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:_KEY_CHARACTERS]


def key_of_each(parts: Iterable[Any]) -> str:
    """A key of everything in `parts`, of which only one is in memory at a time."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(key_of(part).encode())
    return digest.hexdigest()[:_KEY_CHARACTERS]


@cache
def code_of(*modules: str) -> str:
    """A key of the source code of modules and of whole packages, since it holds prompts, parsers and rules."""
    digest = hashlib.sha256()
    for module in modules:
        spec = find_spec(module)
        assert spec is not None and spec.origin is not None
        origin = Path(spec.origin)
        for path in sorted(origin.parent.glob("*.py")) if spec.submodule_search_locations else [origin]:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:_KEY_CHARACTERS]


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """No other process evaluates into `folder` while the block runs. Raises ConfigError when one does."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as cause:
            raise ConfigError(
                f"another evaluation writes into {folder}", remedy="wait for it, or give another --out"
            ) from cause
        yield


class Stage:
    """The append-only JSONL file of one stage. An incomplete last line, left by a kill, is removed on opening."""

    def __init__(self, path: Path) -> None:
        self._lines = AppendedLines(path)
        self._kept = Places()
        self._making: dict[str, asyncio.Task[Made]] = {}
        self._end = 0
        with path.open("rb") as lines:
            foreign = [number for number, line in enumerate(lines, 1) if not self._note(line)]
        if foreign:
            log.warning("lines that are not ours are passed over", file=str(path), lines=len(foreign), line=foreign[0])

    def _note(self, line: bytes) -> bool:
        """Note the place of the value in the file's next line. Returns False for a line without one."""
        at, self._end = self._end, self._end + len(line)
        if not (line.startswith(_HEAD) and line[:_VALUE_AT].endswith(_VALUE) and line.endswith(b"}\n")):
            return False
        key = line[len(_HEAD) : len(_HEAD) + _KEY_CHARACTERS].decode(errors="replace")
        self._kept.put(key, at, len(line))
        return True

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, key: str) -> Made:
        """The value kept under `key`. Raises NotKept, also if the value can not be read; then it is computed again."""
        place = self._kept.get(key)
        if place is None:
            raise NotKept(key)
        line = os.pread(self._lines.fd, place[1], place[0])
        if not line.startswith(_HEAD + key.encode() + _VALUE):
            raise NotKept(key)
        try:
            return json.loads(line[_VALUE_AT : -len(b"}\n")])
        except ValueError as cause:
            number = os.pread(self._lines.fd, place[0], 0).count(b"\n") + 1
            log.warning("a kept result can not be read and is made again", file=str(self._lines.path), line=number)
            raise NotKept(key) from cause

    async def once(self, key: str, make: Callable[[], Awaitable[Made]] | None) -> Made:
        """The value kept under `key`; otherwise it is computed now, once for all concurrent callers.

        Raises what `make` raises, and NotKept if `make` is None.
        """
        with nullcontext() if make is None else suppress(NotKept):
            return self.find(key)
        assert make is not None
        making = self._making.get(key)
        if making is None:
            # A separate task: the first caller may be cancelled while others wait.
            making = self._making[key] = asyncio.create_task(self._make(key, make))
            making.add_done_callback(lambda done: self._landed(key, done))
        return await asyncio.shield(making)

    async def _make(self, key: str, make: Callable[[], Awaitable[Made]]) -> Made:
        value = await make()
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="surrogatepass")
        line = _HEAD + key.encode() + _VALUE + text + b"}\n"
        self._lines.write(line)
        self._note(line)
        return value

    def _landed(self, key: str, done: asyncio.Task[Made]) -> None:
        del self._making[key]
        if not done.cancelled():
            done.exception()  # retrieve the exception even if no caller waits any more

    def close(self) -> None:
        """Close the file."""
        self._lines.close()
