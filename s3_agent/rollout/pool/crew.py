"""The worker processes of a pool, kept alive: which one is free for an attempt, and the replacement of dead ones."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from s3_agent.errors import LaunchError, S3AgentError
from s3_agent.rollout.pool.launcher import Launcher, Link, WorkerLost
from s3_agent.rollout.pool.monitor import Monitor

log = structlog.get_logger()

FIRST_RESTART_WAIT_S = 0.05
LONGEST_RESTART_WAIT_S = 5.0
STARTS_AT_A_TIME = 8
LIVED_S = 5.0


@dataclass(slots=True)
class _Member:
    link: Link
    agent_class: str | None
    busy: int = 0
    played: int = 0


class Crew:
    """`processes` native workers with `concurrency` attempts each, and at most `processes` forked ones."""

    def __init__(self, launcher: Launcher, *, processes: int, concurrency: int, monitor: Monitor) -> None:
        self._launcher, self._processes, self._concurrency = launcher, processes, concurrency
        self._monitor = monitor
        self._native: dict[int, _Member] = {}
        self._forked: list[_Member] = []
        self._starting: Counter[str] = Counter()
        self._changed = asyncio.Condition()
        self._start_slots = asyncio.Semaphore(STARTS_AT_A_TIME)
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Keep the native workers alive until cancelled. Raises S3AgentError when none of them could work."""
        async with asyncio.TaskGroup() as group:
            for index in range(self._processes):
                group.create_task(self._keep(index))

    async def _keep(self, index: int) -> None:
        loop, wait = asyncio.get_running_loop(), FIRST_RESTART_WAIT_S
        while True:
            started = loop.time()
            try:
                async with self._start_slots:
                    link = await self._launcher.start_native(index)
            except WorkerLost as cause:
                reason, name = str(cause), f"worker-{index}"
            except TimeoutError as cause:
                raise LaunchError("the workers did not get ready", remedy="is the machine overloaded?") from cause
            else:
                self._native[index] = _Member(link, None)
                await self._notify()
                reason, name = await link.wait_lost(), link.name
                del self._native[index]
                await self._notify()
                if loop.time() - started > LIVED_S:
                    wait = FIRST_RESTART_WAIT_S
            self._lost(name, reason)
            await asyncio.sleep(wait)
            wait = min(LONGEST_RESTART_WAIT_S, wait * 2)

    def _lost(self, name: str, reason: str) -> None:
        self._monitor.workers_lost += 1
        log.warning("worker lost", worker=name, reason=reason)

    async def _notify(self) -> None:
        self._monitor.workers = len(self._native) + len(self._forked)
        async with self._changed:
            self._changed.notify_all()

    @asynccontextmanager
    async def native(self, *, avoid: str = "") -> AsyncIterator[Link]:
        """A native worker with room; `avoid` only if no other has room."""
        async with self._changed:
            while not (free := [each for each in self._native.values() if each.busy < self._concurrency]):
                await self._changed.wait()
            member = min(free, key=lambda each: (each.link.name == avoid, each.busy, each.played))
            member.busy += 1
            member.played += 1
        try:
            yield member.link
        finally:
            member.busy -= 1
            await self._notify()

    @asynccontextmanager
    async def forked(self, agent_class: str, *, names: tuple[str, ...]) -> AsyncIterator[Link]:
        """A worker of that class. Raises WorkerLost or S3AgentError when none can be started."""
        member = await self._free_forked(agent_class)
        if member is None:
            try:
                async with self._start_slots:
                    link = await self._launcher.start_forked(agent_class, names=names)
                member = _Member(link, agent_class, busy=1)
                self._forked.append(member)
                self._monitor.workers += 1
                task = asyncio.create_task(self._watch(member))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            except TimeoutError as cause:
                raise WorkerLost("a worker for the class did not get ready") from cause
            finally:
                self._starting[agent_class] -= 1
        try:
            yield member.link
        finally:
            member.busy = 0
            await self._notify()

    async def retire(self, agent_class: str) -> None:
        """End the idle workers of a class that can not be loaded, and with the last one their zygote."""
        own = [each for each in self._forked if each.agent_class == agent_class]
        for idle in (each for each in own if not each.busy):
            self._forked.remove(idle)
            idle.link.kill()
        await self._notify()
        if not self._starting[agent_class] and all(each.agent_class != agent_class for each in self._forked):
            del self._starting[agent_class]
            await self._launcher.retire(agent_class)

    async def _free_forked(self, agent_class: str) -> _Member | None:
        """An idle worker of the class; None when one must be started, for which there is then room."""
        async with self._changed:
            while True:
                idle = [each for each in self._forked if not each.busy]
                if own := next((each for each in idle if each.agent_class == agent_class), None):
                    own.busy = 1
                    return own
                if len(self._forked) + self._starting.total() < self._processes:
                    self._starting[agent_class] += 1
                    return None
                if idle:
                    self._forked.remove(idle[0])
                    idle[0].link.kill()
                    continue
                await self._changed.wait()

    async def _watch(self, member: _Member) -> None:
        reason = await member.link.wait_lost()
        if member in self._forked:
            self._forked.remove(member)
            self._lost(member.link.name, reason)
            await self._notify()

    async def close(self) -> None:
        """End every worker."""
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(S3AgentError):
            await self._launcher.close()
