"""Appends whole lines to files, possibly from several processes; a full disk or a kill leaves no half line.

The pool's episodes, the trainer's metrics and every store of kept answers append through this class. A line that did
not fit is an error at once and never becomes the beginning of another line. Removing half a line is logged.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from s3_agent.data.files.whole import room_kept

log = structlog.get_logger()

_BACK = 1 << 16


class AppendedLines:
    """A file opened for appending; an incomplete last line, left by a kill, is removed. Raises DataError.

    Every call first checks for half a line: another process that appends to the file may have been killed meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with room_kept(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            with self._alone():
                self._end_of_lines()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        fcntl.flock(self.fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self.fd, fcntl.LOCK_UN)

    def _end_of_lines(self) -> int:
        """The length of the file, after everything behind its last newline was removed."""
        size = end = os.fstat(self.fd).st_size
        if not size or os.pread(self.fd, 1, size - 1) == b"\n":
            return size
        while end:
            begin = max(0, end - _BACK)
            newline = os.pread(self.fd, end - begin, begin).rfind(b"\n")
            if newline >= 0:
                end = begin + newline + 1
                break
            end = begin
        os.ftruncate(self.fd, end)
        log.warning(
            "half a line, which a kill or a full disk had left, was cut off", file=str(self.path), bytes=size - end
        )
        return end

    def write(self, line: bytes) -> int:
        """Append one line, including its newline; return the byte offset at which it begins.

        Raises DataError if it did not fit; then nothing of it is in the file.
        """
        with room_kept(self.path), self._alone():
            begin = self._end_of_lines()
            try:
                if os.write(self.fd, line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            except OSError:
                os.ftruncate(self.fd, begin)
                raise
        return begin

    def clear(self) -> None:
        """Forget every line."""
        with room_kept(self.path), self._alone():
            os.ftruncate(self.fd, 0)

    def close(self) -> None:
        """Close the file; it may already be closed."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
