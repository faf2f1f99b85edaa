"""Allows one build of an index at a time: two would remove each other's partial files."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from retrieval_server.corpus import Report

_LOOK_S = 0.2


def _locked(path: Path) -> IO[bytes] | None:
    """The open file with its lock; None while another process holds it."""
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
    except BlockingIOError:
        pass
    except BaseException:
        file.close()
        raise
    file.close()  # another process holds it, or has just removed it
    return None


@contextmanager
def only_build(folder: Path, report: Report) -> Iterator[bool]:
    """Wait until no other process builds `folder`; return whether one did. A killed process holds no lock."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(folder.name + ".lock")
    waited = False
    while (file := _locked(path)) is None:
        waited = True
        report("waiting for another build of this index", 0, 0)
        time.sleep(_LOOK_S)
    with file:
        try:
            yield waited
        finally:
            path.unlink(missing_ok=True)
