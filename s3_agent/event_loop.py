"""Runs coroutines on uvloop where it is installed, as on Linux: each question and rollout takes less processor time."""

import asyncio
from collections.abc import Coroutine
from importlib.util import find_spec
from typing import Any


def run[T](main: Coroutine[Any, Any, T]) -> T:
    """What `main` returns, as `asyncio.run` does."""
    if find_spec("uvloop") is None:
        return asyncio.run(main)
    import uvloop

    return asyncio.run(main, loop_factory=uvloop.new_event_loop)
