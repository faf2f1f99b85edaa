"""What a pool did with each rollout: one JSON line for each step, written as it happens.

The episode log has a line for each rollout that has ended. This one also has the claims, the attempts under way and
the starts and ends of pools, so that a rollout which was lost with its pool can be followed (`story`).
"""

import json
import time
from pathlib import Path
from typing import Any, Literal

import structlog
from pydantic import BaseModel

from s3_agent.data.files.appended import AppendedLines
from s3_agent.errors import DataError

log = structlog.get_logger()

EventName = Literal[
    "pool_started",
    "pool_ended",
    "claimed",
    "adopted",
    "attempt_started",
    "attempt_failed",
    "ended",
]


class PoolEvent(BaseModel):
    """One line of a pool log. `at` is in Unix seconds; the fields after `rollout_id` are those of the event.

    | event | fields |
    |---|---|
    | `pool_started` | `message`: process id and host |
    | `pool_ended` | `message`: why, empty after a stop |
    | `claimed`, `adopted` | `attempt_id`: the first attempt's; None where a new one is made |
    | `attempt_started` | `attempt_id`, `attempt`: its number, `worker`, `seconds`: how long it may take |
    | `attempt_failed` | `attempt_id`, `attempt`, `worker`, `boundary`, `seconds` it took, `message` |
    | `ended` | `attempt_id`, `state`, `boundary` and `message` of a failure, `reported`: the gateway accepted the end |
    """

    at: float
    pool: str
    event: EventName
    rollout_id: str | None = None
    attempt_id: str | None = None
    attempt: int | None = None
    worker: str | None = None
    boundary: str | None = None
    seconds: float | None = None
    message: str | None = None
    state: Literal["succeeded", "failed"] | None = None
    reported: bool | None = None


class PoolLog:
    """An append-only JSONL file of PoolEvents, which several pools may share. `None` as path keeps nothing.

    The log only explains what happened: when the disk is full a line is left out, and no rollout fails because of it.
    """

    def __init__(self, path: str | None, *, pool: str) -> None:
        self._lines = None if path is None else AppendedLines(Path(path))
        self._pool = pool
        self._left_out = 0

    def write(self, event: EventName, rollout_id: str | None = None, **fields: Any) -> None:
        """Append one event; its fields are those of PoolEvent."""
        if self._lines is None:
            return
        row = {"at": round(time.time(), 3), "event": event, "rollout_id": rollout_id, "pool": self._pool, **fields}
        line = json.dumps({name: value for name, value in row.items() if value is not None}, ensure_ascii=False)
        try:
            self._lines.write(line.encode("utf-8", "replace") + b"\n")
        except DataError as error:
            if not self._left_out:
                log.error("the pool's log can not be written; its lines are left out", error=error.message)
            self._left_out += 1

    def close(self) -> None:
        """Close the file."""
        if self._lines is not None:
            self._lines.close()
