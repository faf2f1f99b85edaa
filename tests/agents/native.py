"""Native agents that fail once, which a file marks, since each attempt may have a process of its own; and a witness."""

import asyncio
import fcntl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy

from s3_agent.rollout.jobs import Job
from s3_agent.rollout.worker.native import Played, RecipeAgent, WorkerSettings, http_client


class _Once:
    def __init__(self, _: object) -> None:
        pass

    async def close(self) -> None:
        pass

    def first(self, job: Job) -> bool:
        mark = Path(job.input["mark"])
        if mark.exists():
            return False
        mark.touch()
        return True


class HangsOnce(_Once):
    """Blocks its whole process, event loop and all."""

    async def play(self, job: Job) -> float:
        if self.first(job):
            time.sleep(600)
        return 0.25


class RaisesOnce(_Once):
    """Raises what is nobody's fault but its own."""

    async def play(self, job: Job) -> float:
        if self.first(job):
            raise RuntimeError("once")
        return 0.5


ODD_RESULTS: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "nan": lambda: float("nan"),
    "infinite": lambda: Played(reward=float("-inf")),
    "too large": lambda: 10**400,
    "numpy": lambda: numpy.float32(0.5),
    "numpy in the record": lambda: Played(reward=0.5, record={"metrics": {"a": numpy.int64(1)}}),
    "text": lambda: "1.0",
    "half a surrogate": lambda: Played(reward=0.5, record={"answer": "\ud800"}),
    "no record": lambda: Played(reward=0.5, record=None),  # pyright: ignore[reportArgumentType]
    "itself": lambda: Played(reward=0.5, record=_circle()),
}
ODD_ENDS: dict[str, Callable[[], BaseException]] = {
    "half a surrogate raised": lambda: RuntimeError("\ud800"),
    "raised without words": lambda: _Wordless(),
    "exited": lambda: SystemExit(0),
    "cancelled itself": lambda: asyncio.CancelledError(),
}


class _Wordless(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


def _circle() -> dict[str, Any]:
    circle: dict[str, Any] = {}
    circle["itself"] = circle
    return circle


class EndsOddly(_Once):
    """Returns or raises at its first try what no agent may (`input["odd"]`), and 0.5 afterwards.

    A neighbour, which has no `odd`, plays until the file `input["until"]` is there.
    """

    async def play(self, job: Job) -> Any:
        if "odd" not in job.input:
            while not Path(job.input["until"]).exists():
                await asyncio.sleep(0.01)
            return 1.0
        if not self.first(job):
            return 0.5
        await asyncio.sleep(0)
        if make := ODD_RESULTS.get(job.input["odd"]):
            return make()
        raise ODD_ENDS[job.input["odd"]]()


class AsksTwice:
    """Asks the policy the same twice and uses the first answer."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._http = http_client(headers={"Authorization": f"Bearer {settings.gateway_key}"})

    async def close(self) -> None:
        await self._http.aclose()

    async def play(self, job: Job) -> Played:
        body = {"model": "auto", "prompt": [65, 66], "max_tokens": 8, "stop": []}
        for _ in range(2):
            (await self._http.post(f"{job.policy_url}/completions", json=body)).raise_for_status()
        return Played(reward=0.5, record={"metrics": job.input["metrics"]})


class OneAtATime(RecipeAgent):
    """The recipe's agent, which notes in the folder `input["locks"]` when a rollout is played twice at once.

    The lock goes with its process, however that ends.
    """

    async def play(self, job: Job) -> Played:
        folder = Path(job.input["locks"])
        with (folder / job.rollout_id).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                (folder / f"{job.rollout_id}.twice").touch()
            return await super().play(job)
