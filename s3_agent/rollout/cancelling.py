"""A cancelled attempt: the message that cancels it, and what the pool records about it.

The supervisor cancels an attempt when its time has passed or the pool is stopped. A worker of either kind then ends the
attempt and sends no result; only the supervisor records it (`playing`). Standard library only, see `process`.
"""

import json
from collections.abc import Mapping
from typing import Any

CANCELLED = "cancelled"
"""The boundary of an attempt that the supervisor cancelled."""
_KEY = "cancel"


def cancel_line(attempt_id: str) -> bytes:
    """The line that tells a worker to end an attempt."""
    return json.dumps({_KEY: attempt_id}).encode() + b"\n"


def cancelled_attempt(message: Mapping[str, Any]) -> str | None:
    """The attempt that a worker's message cancels; None when the message is a job."""
    return message.get(_KEY)


def cancelled_by(line: bytes) -> str | None:
    """The same for a line that is not parsed yet. A job may have megabytes, so it is not parsed here."""
    return cancelled_attempt(json.loads(line)) if line.startswith(f'{{"{_KEY}"'.encode()) else None
