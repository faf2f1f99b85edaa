"""Native agents that fail once. A file marks that they did, since each attempt may have a process of its own."""

import time
from pathlib import Path

from s3_agent.rollout.jobs import Job


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
