"""How a process of ours logs: to standard error, and nothing that a log line quotes commands the terminal."""

import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from s3_agent.guard import printable


def _shown(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {name: printable(value) if isinstance(value, str) else value for name, value in event.items()}


def set_up_log() -> None:
    """To be called once in a process, before it logs. What a command prints to standard output is its result alone."""
    *before, renderer = structlog.get_config()["processors"]
    if _shown not in before:
        structlog.configure(
            processors=[*before, _shown, renderer], logger_factory=lambda *_: structlog.PrintLogger(sys.stderr)
        )
