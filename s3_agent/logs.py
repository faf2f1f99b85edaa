"""How a process of ours logs: to standard error, where nothing that a line quotes commands the terminal.

A line that can not be written, since the disk of the log is full, is left out: a log line must not stop the work that
it describes.
"""

import sys
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any, cast

import structlog

from s3_agent.guard import printable


def _shown(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {name: printable(value) if isinstance(value, str) else value for name, value in event.items()}


class _StandardError:
    """The process's standard error as it is at each line."""

    def write(self, text: str) -> None:
        with suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()


def set_up_log() -> None:
    """To be called once in a process, before it logs. What a command prints to standard output is only its result."""
    *before, renderer = structlog.get_config()["processors"]
    if _shown not in before:
        file = cast(Any, _StandardError())
        structlog.configure(
            processors=[*before, _shown, renderer], logger_factory=lambda *_: structlog.PrintLogger(file)
        )
