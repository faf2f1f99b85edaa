"""One JSON line per ended rollout, written whole by one append: the pool's memory of what it played."""

import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from s3_agent.types import Episode, Task


class FailedAttempt(BaseModel):
    """Why one attempt did not count. `seconds` is how long it took."""

    attempt_id: str
    boundary: str
    message: str
    worker: str = ""
    seconds: float = 0.0


class EpisodeRecord(BaseModel):
    """How one rollout ended. Times are Unix seconds; `timings` are seconds by phase.

    `output` is the end of what an env-contract class printed. `reported` is false when the gateway did not take the end
    from us, since somebody else had ended the rollout.
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
    failures: list[FailedAttempt] = []
    output: str | None = None
    worker: str | None = None
    reported: bool = True
    started_at: float
    finished_at: float
    timings: dict[str, float] = {}


class EpisodeLog:
    """An append-only JSONL file. `None` as path keeps nothing."""

    def __init__(self, path: str | None) -> None:
        self._file = None if path is None else os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    @property
    def kept(self) -> bool:
        """Whether there is a file: a record that nobody keeps need not be made."""
        return self._file is not None

    def write(self, record: dict[str, Any]) -> None:
        """Append the fields of one EpisodeRecord; episodes come as JSON from a worker and are not parsed again here."""
        if self._file is not None:
            os.write(self._file, json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n")

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)


class GrowingFile:
    """New whole lines of a file that another process appends to, from byte `at` on; it need not exist yet."""

    def __init__(self, path: Path, *, at: int = 0) -> None:
        self._path = path
        self._at = at

    def lines(self) -> list[bytes]:
        """What was appended since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._at)
            new = file.read()
        whole, _, _ = new.rpartition(b"\n")
        self._at += len(whole) + bool(whole)
        return whole.splitlines()
