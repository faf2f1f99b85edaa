"""Disks without room for tests: a small tmpfs where the user may mount one, and a write that is cut short anywhere."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

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
        pytest.skip(f"a tmpfs can not be mounted here ({str(why).strip()}); tests with a cut-short write hold the same")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def cut_short(monkeypatch: pytest.MonkeyPatch, *, after: int) -> Callable[[], None]:
    """The next write takes only `after` bytes, as on a disk that is then full; what is returned ends that."""
    real = os.write

    def write(file: int, data: bytes) -> int:
        return real(file, data[:after])

    monkeypatch.setattr(os, "write", write)
    return lambda: monkeypatch.setattr(os, "write", real)
