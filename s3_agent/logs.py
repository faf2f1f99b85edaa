"""Sets up the log of our processes: it goes to standard error, and no text quoted in it can control the terminal.

A line that can not be written because the log's disk is full is left out: a log line must not stop the work that it
describes.
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
    """The standard error that the process has when a line is written."""

    def write(self, text: str) -> None:
        with suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()


def set_up_log() -> None:
    """Call this once in a process, before it logs. Standard output is only for a command's result."""
    *before, renderer = structlog.get_config()["processors"]
    if _shown not in before:
        file = cast(Any, _StandardError())
        structlog.configure(
            processors=[*before, _shown, renderer], logger_factory=lambda *_: structlog.PrintLogger(file)
        )
