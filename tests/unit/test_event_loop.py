"""Coroutines run on uvloop where it is installed, and a signal ends them as it ends those of asyncio."""

import asyncio
import importlib.util
import os
import signal

import pytest

from s3_agent import event_loop


async def _loop() -> str:
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]


def test_uvloop_runs_it_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert event_loop.run(_loop()) == ("uvloop" if importlib.util.find_spec("uvloop") else "asyncio")
    monkeypatch.setattr(event_loop, "find_spec", lambda _: None)
    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(None)  # an older uvicorn sets that of uvloop for the whole process
    try:
        assert event_loop.run(_loop()) == "asyncio"
    finally:
        asyncio.set_event_loop_policy(before)


def test_a_signal_whose_handler_raises_ends_it() -> None:
    class Ended(SystemExit):
        pass

    def end(*_: object) -> None:
        raise Ended

    async def wait() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(60)

    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(Ended):
            event_loop.run(wait())
    finally:
        signal.signal(signal.SIGTERM, before)
