"""One JSON line per ended rollout, written whole by one append, so that many processes share the file."""

import os
from typing import Literal

from pydantic import BaseModel

from s3_agent.types import Episode, Task


class EpisodeRecord(BaseModel):
    """How one rollout ended. Times are Unix seconds; `timings` are seconds by phase."""

    rollout_id: str
    attempt_id: str
    attempts: int
    is_train: bool
    state: Literal["succeeded", "failed"]
    task: Task | None = None
    episode: Episode | None = None
    answer: str | None = None
    reward: float | None = None
    accuracy: float | None = None
    gbr: float | None = None
    metrics: dict[str, float] = {}
    error: str | None = None
    started_at: float
    finished_at: float
    timings: dict[str, float] = {}


class EpisodeLog:
    """An append-only JSONL file. `None` as path keeps nothing."""

    def __init__(self, path: str | None) -> None:
        self._file = None if path is None else os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, record: EpisodeRecord) -> None:
        """Append one record."""
        if self._file is not None:
            os.write(self._file, record.model_dump_json().encode() + b"\n")
