"""Disks without room for tests: a small tmpfs where the user may mount one, a child process whose files may not grow,
and a write that is cut short anywhere."""

import multiprocessing
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def small_disk(folder: Path, *, size: str = "64k") -> Iterator[Path]:
    """A tmpfs of this size at `folder`. Skips the test of a user who may not mount."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as cause:
        why = getattr(cause, "stderr", "") or cause
        pytest.skip(f"a tmpfs can not be mounted here ({str(why).strip()}); with_small_files holds the same")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _limited(work: Callable[..., None], arguments: tuple[Any, ...], size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    work(*arguments)


def with_small_files(work: Callable[..., None], *arguments: Any, size: int = 1 << 15) -> None:
    """Do the work in a process of its own, in which no file can be longer than `size` bytes; any user may do that."""
    child = multiprocessing.get_context("spawn").Process(target=_limited, args=(work, arguments, size))
    child.start()
    child.join(120)
    assert child.exitcode == 0, f"the process ended with {child.exitcode}; its output says why"


def cut_short(monkeypatch: pytest.MonkeyPatch, *, after: int) -> Callable[[], None]:
    """The next write takes only `after` bytes, as on a disk that is then full; what is returned ends that."""
    real = os.write

    def write(file: int, data: bytes) -> int:
        return real(file, data[:after])

    monkeypatch.setattr(os, "write", write)
    return lambda: monkeypatch.setattr(os, "write", real)
