"""What each stage of an evaluation made, kept under a key of everything that it depends on.

A line is appended whole as soon as a stage is done, so that nothing which was paid for is lost to a `kill -9`; what is
kept is never made again, and what depends on something that changed is never found. Values stay on the disk.
"""

import asyncio
import fcntl
import hashlib
import json
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import structlog

from s3_agent.data.files.appended import AppendedLines
from s3_agent.errors import ConfigError

log = structlog.get_logger()

_HEAD = b'{"key":"'
_KEY_CHARACTERS = 32
_VALUE = b'","value":'
_VALUE_AT = len(_HEAD) + _KEY_CHARACTERS + len(_VALUE)

Made = dict[str, Any]


class NotKept(Exception):
    """A stage's result is not there, and nothing may be asked for it now."""


def key_of(*parts: Any) -> str:
    """A key of everything in `parts`, which must be JSON."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:_KEY_CHARACTERS]


@cache
def code_of(*modules: str) -> str:
    """A key of the source of modules and of all that is in packages: prompts, parsers and rules are written there."""
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
    """The append-only JSONL file of one stage. What a kill left of a last line is cut off when it is opened."""

    def __init__(self, path: Path) -> None:
        self._lines = AppendedLines(path)
        self._kept: dict[str, tuple[int, int]] = {}
        self._making: dict[str, asyncio.Task[Made]] = {}
        self._end = 0
        with path.open("rb") as lines:
            foreign = [number for number, line in enumerate(lines, 1) if not self._note(line)]
        if foreign:
            log.warning("lines that are not ours are passed over", file=str(path), lines=len(foreign), line=foreign[0])

    def _note(self, line: bytes) -> bool:
        """Where the value of the file's next line is. False for a line without one."""
        at, self._end = self._end, self._end + len(line)
        if not (line.startswith(_HEAD) and line[:_VALUE_AT].endswith(_VALUE) and line.endswith(b"}\n")):
            return False
        key = line[len(_HEAD) : len(_HEAD) + _KEY_CHARACTERS].decode(errors="replace")
        self._kept[key] = (at + _VALUE_AT, len(line) - _VALUE_AT - len(b"}\n"))
        return True

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: str) -> bool:
        return key in self._kept

    def find(self, key: str) -> Made:
        """What is kept under `key`. Raises NotKept, also where what is kept can not be read: it is made again."""
        if key not in self._kept:
            raise NotKept(key)
        at, size = self._kept[key]
        try:
            return json.loads(os.pread(self._lines.fd, size, at))
        except ValueError as cause:
            del self._kept[key]
            line = os.pread(self._lines.fd, at, 0).count(b"\n") + 1
            log.warning("a kept result can not be read and is made again", file=str(self._lines.path), line=line)
            raise NotKept(key) from cause

    async def once(self, key: str, make: Callable[[], Awaitable[Made]] | None) -> Made:
        """What is kept under `key`, or else is made now, once for all who ask.

        Raises what `make` raises, and NotKept where it is None.
        """
        with nullcontext() if make is None else suppress(NotKept):
            return self.find(key)
        assert make is not None
        making = self._making.get(key)
        if making is None:
            # A task of its own: who asked first may be cancelled while others wait.
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
            done.exception()  # seen, also when everyone who waited has gone

    def close(self) -> None:
        """Close the file."""
        self._lines.close()
