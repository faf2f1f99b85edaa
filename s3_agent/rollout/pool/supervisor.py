"""Claims queued rollouts and follows each to its end; the only process that changes their state."""

import asyncio
import math
import os
import random
import socket
import time
from collections import deque
from pathlib import Path

import structlog

from s3_agent.clients.gateway import Gateway, Rollout
from s3_agent.errors import GatewayError
from s3_agent.rollout.episode_log import EpisodeLog
from s3_agent.rollout.first_ended import until_first
from s3_agent.rollout.pool.contract import class_path
from s3_agent.rollout.pool.crew import Crew
from s3_agent.rollout.pool.launcher import Launcher
from s3_agent.rollout.pool.monitor import Monitor
from s3_agent.rollout.pool.playing import ActiveRollout, Player
from s3_agent.rollout.pool.pool_log import PoolLog
from s3_agent.rollout.pool.settings import PoolSettings
from s3_agent.rollout.worker.native import WorkerSettings, is_native

log = structlog.get_logger()

SHORTEST_POLL_S, LONGEST_POLL_S = 0.05, 0.5
LOOKAHEAD = 2
MOST_LISTED = 512
CANDIDATES_LAST_S = 5.0
WATCH_S = 2.0


class Supervisor:
    """One pool on one gateway."""

    def __init__(
        self, settings: PoolSettings, worker_settings: WorkerSettings, launcher: Launcher, *, monitor: Monitor
    ) -> None:
        self._settings, self._worker, self._monitor = settings, worker_settings, monitor
        self._crew = Crew(
            launcher, processes=settings.processes, concurrency=worker_settings.concurrency, monitor=monitor
        )
        # Room for rollouts, by whether they are played natively.
        self._room = {True: settings.processes * worker_settings.concurrency, False: settings.processes}
        # Room for rollouts of any kind: each makes one policy call at a time, and the gateway passes so many.
        self._passed: float = math.inf
        self._crowded = False
        self._most_listed = min(MOST_LISTED, LOOKAHEAD * max(self._room[True], 8))
        self._room_made = asyncio.Event()
        self._driven: set[asyncio.Task[None]] = set()
        self._stopping, self._stop_now = asyncio.Event(), asyncio.Event()
        self._given_up = self._contended = False
        self._candidates: deque[Rollout] = deque()
        self._listed_at = 0.0
        if settings.agent_logs:
            Path(settings.agent_logs).mkdir(parents=True, exist_ok=True)

    def stop(self) -> None:
        """Stop claiming and finish what is claimed within `drain_s`; a second call fails it at once, without events."""
        if self._stopping.is_set():
            self._stop_now.set()
        self._stopping.set()

    async def run(self) -> None:
        """Work until stopped. Raises GatewayError when the gateway is lost, since its store is in memory."""
        settings, key = self._settings, self._worker.gateway_key
        episodes = EpisodeLog(settings.episodes)
        self._events = PoolLog(settings.pool_log, pool=settings.pool_id)
        async with Gateway(settings.gateway_url, key, patience_s=settings.gateway_patience_s) as self._gateway:
            self._player = Player(
                settings,
                self._gateway,
                self._crew,
                key=key,
                monitor=self._monitor,
                episodes=episodes,
                events=self._events,
            )
            ended_by = ""
            self._events.write("pool_started", message=f"process {os.getpid()} on {socket.gethostname()}")
            try:
                limit = await self._learn_limit()
                watched = [self._watch_gateway(), *([] if limit is None else [self._watch_calls(limit)])]
                await until_first(self._crew.run(), *watched, self._work())
            except Exception as cause:
                ended_by = str(cause).partition("\n")[0]
                # Whoever stops us may have stopped the gateway, too: the rollouts of a pool that stops have an end.
                self._given_up = self._stopping.is_set()
                raise
            finally:
                await _cancel(self._driven)
                self._events.write("pool_ended", message=ended_by)
                await self._crew.close()
                self._events.close()
                episodes.close()

    async def _learn_limit(self) -> int | None:
        """How many policy calls the gateway passes: no more rollouts are claimed, since more calls would wait in it."""
        limit, room = await self._gateway.limit(stated=self._settings.policy_calls), max(self._room.values())
        if limit.calls is None:
            return None
        self._passed = limit.calls
        if limit.bounds(room):
            log.warning(
                "the gateway passes fewer policy calls at a time than the pool plays rollouts: fewer are claimed",
                policy_calls=limit.calls,
                room=room,
                basis=limit.basis,
                remedy="docs/worker-pool.md, How many policy calls a gateway passes",
            )
        await self._look_at_calls(limit.calls)
        return limit.calls

    async def _look_at_calls(self, limit: int) -> None:
        """Claim nothing while the gateway holds more calls than it passes: other pools send calls through it, too."""
        held = await self._gateway.policy_calls()
        crowded = held is not None and held > limit
        if crowded and not self._crowded:
            log.warning("the gateway holds more policy calls than it passes: claiming waits", held=held, passes=limit)
        elif self._crowded and not crowded:
            log.info("the gateway passes all policy calls again", held=held, passes=limit)
            self._room_made.set()
        self._crowded = crowded

    async def _watch_calls(self, limit: int) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            await self._look_at_calls(limit)

    async def _watch_gateway(self) -> None:
        """Notice that the gateway is gone or was started again, also while nothing is claimed or ended."""
        most = 0
        while True:
            most = max(most, self._monitor.done)  # before the gateway is asked: it grows meanwhile
            try:
                count = await self._gateway.terminal_count()
            except GatewayError as error:
                if error.status not in (404, 422):  # a version without this list
                    raise
                await asyncio.Event().wait()  # forever: if one of these coroutines ends, the pool ends
                return
            if count < most:
                raise GatewayError(
                    f"the gateway at {self._settings.gateway_url} was started again and has lost its rollouts",
                    remedy="start the training run again: the gateway keeps its store in memory",
                )
            most = count
            await asyncio.sleep(WATCH_S)

    async def _work(self) -> None:
        await self._adopt()
        await until_first(self._stopping.wait(), self._claim())
        await self._drain()

    async def _drain(self) -> None:
        """Finish what is claimed; what is not finished in time is failed without events."""
        # Whoever stops us may have stopped the gateway, too.
        self._gateway.patience_s = min(self._gateway.patience_s, max(1.0, self._settings.drain_s))
        stop_now = asyncio.create_task(self._stop_now.wait())
        deadline = time.monotonic() + self._settings.drain_s
        while self._driven and not stop_now.done() and (left := deadline - time.monotonic()) > 0:
            await asyncio.wait({stop_now, *self._driven}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            self._raise_from_driven()
        stop_now.cancel()
        self._given_up = True
        await _cancel(self._driven)

    def _raise_from_driven(self) -> None:
        for task in [task for task in self._driven if task.done()]:
            self._driven.discard(task)
            task.result()

    async def _adopt(self) -> None:
        """Adopt the rollouts that this pool had claimed before it was killed; never those of another pool."""
        for rollout in await self._gateway.rollouts("running", limit=1_000_000):
            if (rollout.status.last_attempt_id or "").rpartition("-")[0] == self._settings.pool_id:
                log.info("adopted", rollout_id=rollout.rollout_id)
                self._monitor.adopted += 1
                self._events.write("adopted", rollout.rollout_id)
                self._drive(self._run_of(rollout), claim=False)

    async def _claim(self) -> None:
        poll = SHORTEST_POLL_S
        while True:
            self._raise_from_driven()
            self._room_made.clear()
            if not self._has_room():
                await self._room_made.wait()
                continue
            if not self._candidates or time.monotonic() - self._listed_at > CANDIDATES_LAST_S:
                await self._list()
            if self._claim_candidates():
                poll = SHORTEST_POLL_S
                await asyncio.sleep(0)
                continue
            try:  # nothing to claim, or no room for it
                async with asyncio.timeout(poll):
                    await self._room_made.wait()
            except TimeoutError:
                poll = min(LONGEST_POLL_S, poll * 2)

    async def _list(self) -> None:
        found = await self._gateway.rollouts("queuing", limit=self._most_listed)
        self._monitor.queued, self._monitor.queue_is_longer = len(found), len(found) == self._most_listed
        if self._contended:  # another pool takes the oldest first, too
            random.shuffle(found)
            self._contended = False
        self._candidates = deque(found)
        self._listed_at = time.monotonic()

    def _run_of(self, rollout: Rollout) -> ActiveRollout:
        local = rollout.config.local
        named = local.agent_class or None if local else None
        if is_native(path := class_path(named), self._worker):
            return ActiveRollout(rollout, path, True, None)
        return ActiveRollout(rollout, named, False, None)

    def _has_room(self) -> bool:
        return self._passed > 0 and not self._crowded and any(room > 0 for room in self._room.values())

    def _claim_candidates(self) -> bool:
        """Start to claim the rollouts that there is room for. Returns whether there were any."""
        kept: list[Rollout] = []
        started = False
        while self._candidates and self._has_room():
            rollout = self._candidates.popleft()
            run = self._run_of(rollout)
            if self._room[run.native] <= 0:
                kept.append(rollout)
                continue
            self._drive(run, claim=True)
            started = True
        self._candidates.extendleft(reversed(kept))
        return started

    def _drive(self, run: ActiveRollout, *, claim: bool) -> None:
        self._room[run.native] -= 1
        self._passed -= 1
        self._monitor.running += 1
        task = asyncio.create_task(self._to_its_end(run, claim=claim))
        self._driven.add(task)
        task.add_done_callback(self._driven_done)

    def _driven_done(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is None:
            self._driven.discard(task)
        self._room_made.set()

    async def _to_its_end(self, run: ActiveRollout, *, claim: bool) -> None:
        claiming: asyncio.Task[bool] | None = None
        try:
            if claim:
                run.attempt_id = self._player.new_attempt_id()
                claiming = asyncio.create_task(self._gateway.claim(run.rollout_id, run.attempt_id))
                if not await asyncio.shield(claiming):
                    self._monitor.conflicts += 1
                    self._contended = True
                    return
                self._events.write("claimed", run.rollout_id, attempt_id=run.attempt_id)
                self._monitor.queued = max(0, self._monitor.queued - 1)
            await self._player.play(run)
        except asyncio.CancelledError:
            if not self._given_up or (claiming and not await claiming):
                raise
            await self._player.stop(run)
        except GatewayError as error:  # the trainer deleted it, another process ended it, or the gateway is lost
            self._player.forget(run, error)
        finally:
            self._room[run.native] += 1
            self._passed += 1
            self._monitor.running -= 1


async def _cancel(tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
