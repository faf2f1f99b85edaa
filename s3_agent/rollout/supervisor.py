"""Claims queued rollouts, hands their attempts to workers, and owns every change of their state.

Every claimed rollout ends: SUCCEEDED on the attempt that earned its reward, or FAILED on an attempt without events
(design §4, §7). A failed attempt is tried again under a new id, on another worker, as the failure policy says.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import structlog
from pydantic import BaseModel, ConfigDict, Field

from s3_agent.clients.gateway import Gateway, Rollout
from s3_agent.errors import ConfigError, GatewayError, S3AgentError
from s3_agent.rollout.contract import environment_of
from s3_agent.rollout.crew import Crew
from s3_agent.rollout.episode_log import EpisodeLog
from s3_agent.rollout.failure_policy import DEADLINE, NOT_ALLOWED, TIMEOUT, WORKER, FailurePolicy
from s3_agent.rollout.jobs import Failure, Job, Report
from s3_agent.rollout.launcher import Launcher, Link, WorkerLost
from s3_agent.rollout.monitor import Monitor
from s3_agent.rollout.native import WorkerSettings, is_native
from s3_agent.types import Task

log = structlog.get_logger()

SHORTEST_POLL_S, LONGEST_POLL_S = 0.05, 0.5
LOOKAHEAD = 2
MOST_LISTED = 512
CANDIDATES_LAST_S = 5.0
HUNG_AFTER_S = 5.0
WATCH_S = 2.0
NO_DEADLINE_S = 10 * 365 * 86_400.0


class PoolSettings(BaseModel):
    """How a pool claims and ends rollouts. Times are in seconds.

    `allowed` are patterns of the env-contract classes that may run (`module:Class`, with `*`); none allows all, as the
    stock controller does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gateway_url: str
    gateway_patience_s: float = 60.0
    pool_id: str = Field(default="pool", pattern=r"^[A-Za-z0-9_.-]+$")
    processes: int = Field(default=1, ge=1)
    drain_s: float = Field(default=600.0, ge=0)
    allowed: tuple[str, ...] = ()
    failure_policy: FailurePolicy = Field(default_factory=FailurePolicy)
    episodes: str | None = None
    agent_logs: str | None = None


class _Attempt(NamedTuple):
    report: Report
    worker: str


@dataclass(slots=True)
class _Run:
    """One claimed rollout on its way to its end."""

    rollout: Rollout
    attempt_id: str | None
    started_at: float = field(default_factory=time.time)
    started: float = field(default_factory=time.monotonic)
    attempts: int = 0
    worker: str = ""
    failures: list[dict[str, Any]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """The time that the rollout has in all; 0 in its configuration is no limit."""
        return float(self.rollout.config.timeout_seconds or NO_DEADLINE_S)

    @property
    def left(self) -> float:
        """Seconds until its deadline."""
        return self.started + self.seconds - time.monotonic()


def _class_path(agent_class: str | None) -> str | None:
    """`module:Class`, however it was written; None for no class."""
    if not agent_class or ":" in agent_class:
        return agent_class or None
    return ":".join(agent_class.rsplit(".", 1))


class Supervisor:
    """One pool on one gateway."""

    def __init__(
        self, settings: PoolSettings, worker_settings: WorkerSettings, launcher: Launcher, *, monitor: Monitor
    ) -> None:
        self._settings, self._worker = settings, worker_settings
        self._monitor = monitor
        self._crew = Crew(
            launcher,
            processes=settings.processes,
            concurrency=worker_settings.concurrency,
            lost=self._worker_lost,
        )
        self._free_native = settings.processes * worker_settings.concurrency
        self._free_forked = settings.processes
        self._capacity = self._free_native
        self._driven: set[asyncio.Task[None]] = set()
        self._slot_free = asyncio.Event()
        self._stopping, self._stop_now = asyncio.Event(), asyncio.Event()
        self._given_up = False
        self._log = EpisodeLog(settings.episodes)
        self._candidates: deque[Rollout] = deque()
        self._listed_at = 0.0
        self._contended = False
        if settings.agent_logs:
            Path(settings.agent_logs).mkdir(parents=True, exist_ok=True)

    def stop(self) -> None:
        """Claim no more, and finish what is claimed within `drain_s`; asked again, fail it at once, without events."""
        if self._stopping.is_set():
            self._stop_now.set()
        self._stopping.set()

    async def run(self) -> None:
        """Work until stopped. Raises GatewayError when the gateway is lost, since its store is in memory."""
        patience = self._settings.gateway_patience_s
        async with Gateway(self._settings.gateway_url, self._worker.gateway_key, patience_s=patience) as self._gateway:
            try:
                await self._until_first(self._crew.run(), self._watch_gateway(), self._claim_and_drain())
            finally:
                for task in self._driven:
                    task.cancel()
                await asyncio.gather(*self._driven, return_exceptions=True)
                await self._crew.close()
                self._log.close()

    async def _until_first(self, *works: Awaitable[None]) -> None:
        tasks = [asyncio.ensure_future(work) for work in works]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if (error := task.exception()) is not None:
                    raise _first_leaf(error)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch_gateway(self) -> None:
        """Notice a gateway that is gone or started again also while nothing is claimed or ended."""
        most = 0
        while True:
            most = max(most, self._monitor.done)  # before the gateway is asked: it grows meanwhile
            try:
                count = await self._gateway.terminal_count()
            except GatewayError as error:
                if error.status not in (404, 422):  # a version without this list
                    raise
                return
            if count < most:
                raise GatewayError(
                    f"the gateway at {self._settings.gateway_url} was started again and has lost its rollouts",
                    remedy="start the training run again: the gateway keeps its store in memory",
                )
            most = count
            await asyncio.sleep(WATCH_S)

    async def _claim_and_drain(self) -> None:
        await self._adopt()
        stopping = asyncio.create_task(self._stopping.wait())
        claiming = asyncio.create_task(self._claim_until_stopped())
        try:
            await asyncio.wait({stopping, claiming}, return_when=asyncio.FIRST_COMPLETED)
            if claiming.done():
                claiming.result()
        finally:
            stopping.cancel()
            claiming.cancel()
            await asyncio.gather(claiming, return_exceptions=True)
        await self._drain()

    async def _drain(self) -> None:
        """Finish what is claimed; what is not finished in time is failed without events."""
        stop_now = asyncio.create_task(self._stop_now.wait())
        deadline = time.monotonic() + self._settings.drain_s
        while self._driven and not stop_now.done() and (left := deadline - time.monotonic()) > 0:
            await asyncio.wait({stop_now, *self._driven}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            self._raise_from_driven()
        stop_now.cancel()
        self._given_up = True
        for task in self._driven:
            task.cancel()
        await asyncio.gather(*self._driven, return_exceptions=True)

    def _raise_from_driven(self) -> None:
        for task in [task for task in self._driven if task.done()]:
            self._driven.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _adopt(self) -> None:
        """Take up what this pool had claimed before it was killed; never what is another's."""
        for rollout in await self._gateway.rollouts("running", limit=1_000_000):
            if (rollout.status.last_attempt_id or "").rpartition("-")[0] == self._settings.pool_id:
                log.info("adopted", rollout_id=rollout.rollout_id)
                self._monitor.adopted += 1
                self._take_slot(rollout)
                self._drive(_Run(rollout, None), claim=False)

    async def _claim_until_stopped(self) -> None:
        poll = SHORTEST_POLL_S
        while True:
            self._raise_from_driven()
            self._slot_free.clear()
            if self._free_native <= 0 and self._free_forked <= 0:
                await self._slot_free.wait()
                continue
            if not self._candidates or time.monotonic() - self._listed_at > CANDIDATES_LAST_S:
                await self._list()
            if self._claim_candidates():
                poll = SHORTEST_POLL_S
                await asyncio.sleep(0)
                continue
            try:  # nothing to claim, or no room for what there is
                async with asyncio.timeout(poll):
                    await self._slot_free.wait()
            except TimeoutError:
                poll = min(LONGEST_POLL_S, poll * 2)
            if self._candidates:
                await asyncio.sleep(0)

    async def _list(self) -> None:
        limit = min(MOST_LISTED, LOOKAHEAD * max(self._capacity, 8))
        found = await self._gateway.rollouts("queuing", limit=limit)
        self._monitor.queued, self._monitor.queue_is_longer = len(found), len(found) == limit
        if self._contended:  # another pool takes the oldest first, too
            random.shuffle(found)
            self._contended = False
        self._candidates = deque(found)
        self._listed_at = time.monotonic()

    def _claim_candidates(self) -> bool:
        """Start to claim what there is room for; whether there was any."""
        kept: deque[Rollout] = deque()
        started = False
        while self._candidates and (self._free_native > 0 or self._free_forked > 0):
            rollout = self._candidates.popleft()
            if (self._free_native if self._native(rollout) else self._free_forked) <= 0:
                kept.append(rollout)
                continue
            self._take_slot(rollout)
            self._drive(_Run(rollout, self._new_attempt_id()), claim=True)
            started = True
        self._candidates.extendleft(reversed(kept))
        return started

    def _native(self, rollout: Rollout) -> bool:
        return is_native(self._agent_class(rollout), self._worker)

    @staticmethod
    def _agent_class(rollout: Rollout) -> str | None:
        return _class_path(rollout.config.local.agent_class) if rollout.config.local else None

    def _take_slot(self, rollout: Rollout, count: int = 1) -> None:
        if self._native(rollout):
            self._free_native -= count
        else:
            self._free_forked -= count
        self._monitor.running += count

    def _new_attempt_id(self) -> str:
        return f"{self._settings.pool_id}-{uuid4().hex}"

    def _worker_lost(self, name: str, reason: str) -> None:
        self._monitor.workers_lost += 1
        log.warning("worker lost", worker=name, reason=reason)

    def _drive(self, run: _Run, *, claim: bool) -> None:
        task = asyncio.create_task(self._to_its_end(run, claim=claim))
        self._driven.add(task)
        task.add_done_callback(self._driven_done)

    def _driven_done(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is None:
            self._driven.discard(task)
        self._slot_free.set()

    async def _to_its_end(self, run: _Run, *, claim: bool) -> None:
        claiming: asyncio.Task[bool] | None = None
        try:
            if claim:
                claiming = asyncio.create_task(self._gateway.claim(run.rollout.rollout_id, run.attempt_id or ""))
                if not await asyncio.shield(claiming):
                    self._monitor.conflicts += 1
                    self._contended = True
                    return
                self._monitor.claimed += 1
                self._monitor.queued = max(0, self._monitor.queued - 1)
            await self._play(run)
        except asyncio.CancelledError:
            if not self._given_up or (claiming and not await claiming):
                raise
            failure = Failure(boundary="stopped", message="the pool was stopped before the rollout had ended")
            await self._fail(run, failure)
        except GatewayError as error:
            if error.status not in (404, 409):
                raise
            # The trainer deleted it, or somebody else ended it.
            self._monitor.gone += 1
            log.warning("rollout is gone", rollout_id=run.rollout.rollout_id, status=error.status)
        finally:
            self._take_slot(run.rollout, -1)

    async def _play(self, run: _Run) -> None:
        policy, rollout_id = self._settings.failure_policy, run.rollout.rollout_id
        failure: Failure | None = None
        while run.left > 0:
            run.attempts += 1
            if run.attempt_id is None:
                run.attempt_id = self._new_attempt_id()
                await self._gateway.new_attempt(rollout_id, run.attempt_id)
            started = time.monotonic()
            attempt = await self._attempt(run, run.attempt_id, policy.seconds(run.left))
            run.worker = attempt.worker
            failure = attempt.report.failure
            if failure is None:
                await self._succeed(run, run.attempt_id, attempt.report)
                return
            run.failures.append(
                {
                    "attempt_id": run.attempt_id,
                    "boundary": failure.boundary,
                    "message": failure.message,
                    "worker": attempt.worker,
                    "seconds": round(time.monotonic() - started, 3),
                }
            )
            self._monitor.failed_attempts[failure.boundary] += 1
            log.warning("attempt failed", rollout_id=rollout_id, attempt=run.attempts, error=failure.message)
            run.attempt_id = None
            wait = policy.wait(failure, attempts=run.attempts, left=run.left)
            if wait is None:
                break
            await asyncio.sleep(wait)
        await self._fail(run, self._final(run, failure), output=attempt.report.output if failure else "")

    def _final(self, run: _Run, failure: Failure | None) -> Failure:
        """What the rollout failed of: the last attempt's failure, and whether time was what ended the trying."""
        if failure is None:
            late = f"the rollout's {run.seconds:.0f} s had passed before its first attempt"
            return Failure(boundary=DEADLINE, message=late)
        message = f"attempt {run.attempts}: {failure.boundary}: {failure.message}"
        policy = self._settings.failure_policy
        if failure.retried and failure.boundary in policy.retried and run.attempts != policy.most_attempts:
            message = f"the rollout's {run.seconds:.0f} s passed; {message}"
        return Failure(boundary=failure.boundary, message=message)

    async def _attempt(self, run: _Run, attempt_id: str, seconds: float) -> _Attempt:
        """Have one attempt played. A worker that answers neither in time nor dies is killed."""
        agent_class = self._agent_class(run.rollout)
        native = is_native(agent_class, self._worker)
        if not native and agent_class and not self._allowed(agent_class):
            return _refused(attempt_id, NOT_ALLOWED, f"{agent_class} is not among the classes that this pool may run")
        try:
            job = self._job(run.rollout, attempt_id, agent_class, seconds, native=native)
        except ConfigError as cause:
            return _refused(attempt_id, cause.boundary, cause.message)
        names = tuple(sorted(job.environment))
        link: Link | None = None
        try:
            async with asyncio.timeout(seconds + HUNG_AFTER_S) as limit:
                crew = self._crew
                finding = crew.native(avoid=run.worker) if native else crew.forked(agent_class or "", names=names)
                async with finding as link:
                    try:
                        return _Attempt(await link.play(job), link.name)
                    except asyncio.CancelledError:
                        if limit.expired():
                            link.kill()
                        raise
        except TimeoutError:
            what = "the worker hung and was killed" if link else "no worker became free"
            failure = Failure(boundary=TIMEOUT, message=f"{what} after {seconds:.0f} s")
        except WorkerLost as cause:
            failure = Failure(boundary=WORKER, message=f"{link.name if link else 'a worker'} was lost: {cause}")
        except S3AgentError as cause:
            failure = Failure(boundary=cause.boundary, message=str(cause), retried=False)
        return _Attempt(Report(attempt_id=attempt_id, failure=failure), link.name if link else "")

    def _allowed(self, agent_class: str) -> bool:
        allowed = self._settings.allowed
        return not allowed or any(fnmatchcase(agent_class, _class_path(pattern) or "") for pattern in allowed)

    def _job(self, rollout: Rollout, attempt_id: str, agent_class: str | None, seconds: float, *, native: bool) -> Job:
        policy_url = self._gateway.policy_url(rollout, attempt_id)
        event_url = self._gateway.url + self._gateway.event_path(rollout.rollout_id, attempt_id)
        log_path, environment = None, {}
        if not native:
            environment = environment_of(
                rollout, key=self._worker.gateway_key, policy_url=policy_url, event_url=event_url
            )
            if self._settings.agent_logs:
                log_path = str((Path(self._settings.agent_logs) / f"{attempt_id}.log").resolve())
        return Job(
            rollout_id=rollout.rollout_id,
            attempt_id=attempt_id,
            is_train=rollout.is_train,
            input=rollout.input,
            policy_url=policy_url,
            event_url=event_url,
            seconds=seconds,
            agent_class=agent_class,
            environment=environment,
            log_path=log_path,
        )

    async def _succeed(self, run: _Run, attempt_id: str, report: Report) -> None:
        rollout_id, reward, reporting = run.rollout.rollout_id, report.reward, time.monotonic()
        if self._native(run.rollout):
            assert reward is not None
            await self._gateway.post_reward(rollout_id, attempt_id, reward)
        else:
            reward = await self._gateway.reward(rollout_id)
            if reward is None:
                log.warning("the class posted no reward: the trainer will fill in its own", rollout_id=rollout_id)
        reported = await self._report(self._gateway.succeed(rollout_id, attempt_id))
        record = dict(report.record)
        record["timings"] = {**record.get("timings", {}), "report_s": time.monotonic() - reporting}
        self._write(
            run,
            record,
            attempt_id=attempt_id,
            state="succeeded",
            reward=reward,
            reported=reported,
            output=report.output or None,
        )

    async def _fail(self, run: _Run, failure: Failure, *, output: str = "") -> None:
        attempt_id = self._new_attempt_id()
        reported = await self._report(self._gateway.fail(run.rollout.rollout_id, attempt_id, failure.message))
        self._write(
            run,
            {},
            attempt_id=attempt_id,
            state="failed",
            error=failure.message,
            boundary=failure.boundary,
            reported=reported,
            output=output or None,
        )

    @staticmethod
    async def _report(end: Awaitable[None]) -> bool:
        """Whether the gateway took the end; False when somebody else had ended the rollout."""
        try:
            await end
        except GatewayError as error:
            if error.status != 409:
                raise
            log.warning("somebody else had ended the rollout", error=error.message)
            return False
        return True

    def _write(self, run: _Run, record: dict[str, Any], *, boundary: str | None = None, **fields: Any) -> None:
        rollout = run.rollout
        timings = record.pop("timings", {})
        if rollout.status.created_at is not None:
            timings["queued_s"] = max(0.0, run.started_at - rollout.status.created_at)
        finished_at = time.time()
        timings["total_s"] = finished_at - run.started_at
        self._monitor.ended(timings, reward=fields.get("reward"), boundary=boundary)
        self._log.write(
            {
                "rollout_id": rollout.rollout_id,
                "attempts": run.attempts,
                "is_train": rollout.is_train,
                "task": _task_row(rollout.input),
                "agent_class": self._agent_class(rollout),
                "worker": run.worker or None,
                "failures": run.failures,
                "started_at": run.started_at,
                "finished_at": finished_at,
                "timings": {name: round(seconds, 4) for name, seconds in timings.items()},
                **record,
                **fields,
            }
        )


def _first_leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _refused(attempt_id: str, boundary: str, message: str) -> _Attempt:
    failure = Failure(boundary=boundary, message=message, retried=False)
    return _Attempt(Report(attempt_id=attempt_id, failure=failure), "")


def _task_row(row: Any) -> dict[str, Any] | None:
    try:
        return Task.from_row(row if isinstance(row, dict) else {}).model_dump(mode="json")
    except ConfigError:
        return None
