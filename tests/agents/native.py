"""Native agents that fail once, which a file marks, since each attempt may have a process of its own; and a witness."""

import fcntl
import time
from pathlib import Path

from s3_agent.rollout.jobs import Job
from s3_agent.rollout.native import Played, RecipeAgent


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
