"""One JSON line per ended rollout, written whole in one append: the pool's record of what it played."""

import json
import re
from collections import deque
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from s3_agent.data.files.appended import AppendedLines
from s3_agent.errors import DataError
from s3_agent.types import Episode, Task

# A quote inside of a JSON text is escaped: no text inside of an episode can match it.
_FAILED = re.compile(rb'"state": ?"failed"')


class FailedAttempt(BaseModel):
    """Why one attempt did not count; `boundary` is `cancelled` when the pool ended first. It took `seconds`."""

    attempt_id: str
    boundary: str
    message: str
    worker: str = ""
    seconds: float = 0.0


class EpisodeRecord(BaseModel):
    """How one rollout ended. Times are Unix seconds; `timings` are seconds by phase.

    `boundary` is where a rollout failed (`failure_policy`). `output` is the end of what an env-contract class printed.
    `reported` is false when the gateway did not accept the end from us. `error` then begins with the reason: the
    trainer had deleted the rollout, another process had ended it, or the gateway could not be reached.
    """

    rollout_id: str
    attempt_id: str
    attempts: int
    is_train: bool
    state: Literal["succeeded", "failed"]
    task: Task | None = None
    agent_class: str | None = None
    episode: Episode | None = None
    answer: str | None = None
    reward: float | None = None
    accuracy: float | None = None
    gbr: float | None = None
    metrics: dict[str, float] = {}
    error: str | None = None
    boundary: str | None = None
    failures: list[FailedAttempt] = []
    output: str | None = None
    worker: str | None = None
    reported: bool = True
    started_at: float
    finished_at: float
    timings: dict[str, float] = {}


class EpisodeLog:
    """An append-only JSONL file. With the path `None` nothing is kept.

    When the disk is full, a record stays in memory and is written before the next one or when the log is closed: the
    gateway counts its rollout as ended, so no pool would play it again. Raises DataError.
    """

    def __init__(self, path: str | None) -> None:
        self._lines = None if path is None else AppendedLines(Path(path))
        self._waiting: deque[bytes] = deque()

    @property
    def kept(self) -> bool:
        """Whether there is a file. Without one, no record needs to be made."""
        return self._lines is not None

    @property
    def waiting(self) -> int:
        """Records that are not in the file yet."""
        return len(self._waiting)

    def write(self, record: dict[str, Any]) -> None:
        """Append the fields of one EpisodeRecord; episodes come as JSON from a worker and are not parsed again here.

        Raises DataError when the disk is full; the record then waits for the next call.
        """
        if self._lines is not None:
            self._waiting.append(json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            self._write_waiting(self._lines)

    def _write_waiting(self, lines: AppendedLines) -> None:
        while self._waiting:
            lines.write(self._waiting[0])
            self._waiting.popleft()

    def close(self) -> None:
        """Write the records that wait, and close the file. Raises DataError when the disk is full."""
        if self._lines is None:
            return
        try:
            self._write_waiting(self._lines)
        finally:
            self._lines.close()


def read_record(line: bytes | str, *, where: str) -> EpisodeRecord:
    """The record in one line of an episode log. Raises a DataError that names `where` the line is."""
    try:
        return EpisodeRecord.model_validate_json(line)
    except ValueError as cause:
        reason = str(cause).splitlines()[0]
        raise DataError(
            f"{where} is not a record of a rollout: {reason}",
            remedy="look at the line: an incomplete record can be deleted, its rollout then counts as lost",
        ) from cause


def read_records(path: Path) -> list[EpisodeRecord]:
    """The records of a whole log, without the line that is being written. Raises DataError with the line at fault."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as cause:
        raise DataError(
            f"{path} can not be read: {cause.strerror}", remedy="it is written by the worker pool"
        ) from cause
    return [read_record(line, where=f"{path}:{number}") for number, line in enumerate(lines, 1)]


def has_failed(line: bytes) -> bool:
    """Whether a line describes a rollout that failed, found without parsing its episode."""
    return _FAILED.search(line) is not None


class GrowingFile:
    """The new complete lines of a file that another process appends to, from byte `at`. The file need not exist yet."""

    def __init__(self, path: Path, *, at: int = 0) -> None:
        self.path = path
        self._at = at

    def lines(self) -> list[bytes]:
        """The lines that were appended since the last call."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._at)
            new = file.read()
        whole, _, _ = new.rpartition(b"\n")
        self._at += len(whole) + bool(whole)
        return whole.split(b"\n") if whole else []
