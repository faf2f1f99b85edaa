"""One claimed rollout, from its first attempt to its end.

It ends SUCCEEDED on the attempt that earned its reward, or FAILED on an attempt without events
(docs/promises.md, 1). A failed attempt is tried again under a new id, on another worker, as the failure policy says.
"""

import asyncio
import time
from collections.abc import Awaitable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import structlog

from s3_agent.clients.gateway import Gateway, Rollout
from s3_agent.errors import ConfigError, DataError, GatewayError, S3AgentError
from s3_agent.rollout.contract import class_path, environment_of
from s3_agent.rollout.crew import Crew
from s3_agent.rollout.episode_log import EpisodeLog
from s3_agent.rollout.failure_policy import DEADLINE, IMPORT, NOT_ALLOWED, REWARD, TIMEOUT, WORKER
from s3_agent.rollout.jobs import Failure, Job, Report
from s3_agent.rollout.launcher import Link, WorkerLost
from s3_agent.rollout.monitor import Monitor
from s3_agent.rollout.settings import PoolSettings
from s3_agent.types import Task

log = structlog.get_logger()

HUNG_AFTER_S = 5.0
MOST_WAITING = 1000  # episodes that are kept in memory while the disk is full
NO_DEADLINE_S = 10 * 365 * 86_400.0


@dataclass(slots=True)
class Run:
    """One rollout on its way to its end. `attempt_id` is None when the next attempt needs a new one."""

    rollout: Rollout
    agent_class: str | None
    native: bool
    attempt_id: str | None
    started_at: float = field(default_factory=time.time)
    started: float = field(default_factory=time.monotonic)
    attempts: int = 0
    worker: str = ""
    failures: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rollout_id(self) -> str:
        """The gateway's id."""
        return self.rollout.rollout_id

    @property
    def seconds(self) -> float:
        """The time that the rollout has in all; 0 in its configuration is no limit."""
        return float(self.rollout.config.timeout_seconds or NO_DEADLINE_S)

    @property
    def left(self) -> float:
        """Seconds until its deadline."""
        return self.started + self.seconds - time.monotonic()


class _Attempt(NamedTuple):
    report: Report
    worker: str


def _refused(attempt_id: str, boundary: str, message: str) -> _Attempt:
    failure = Failure(boundary=boundary, message=message, retried=False)
    return _Attempt(Report(attempt_id=attempt_id, failure=failure), "")


def _task_row(row: Any) -> dict[str, Any] | None:
    try:
        return Task.from_row(row if isinstance(row, dict) else {}).model_dump(mode="json")
    except ConfigError:
        return None


class Player:
    """Plays claimed rollouts with the workers of a crew."""

    def __init__(
        self, settings: PoolSettings, gateway: Gateway, crew: Crew, *, key: str, monitor: Monitor, episodes: EpisodeLog
    ) -> None:
        self._settings, self._gateway, self._crew, self._key = settings, gateway, crew, key
        self._monitor, self._episodes = monitor, episodes

    def new_attempt_id(self) -> str:
        """Unique everywhere; what precedes the last dash is the pool's id, by which it knows its own again."""
        return f"{self._settings.pool_id}-{uuid4().hex}"

    async def play(self, run: Run) -> None:
        """Play until the rollout has ended. Raises GatewayError, with status 404 when the trainer has deleted it."""
        policy = self._settings.failure_policy
        failure, output = None, ""
        while run.left > 0:
            run.attempts += 1
            if run.attempt_id is None:
                run.attempt_id = self.new_attempt_id()
                await self._gateway.new_attempt(run.rollout_id, run.attempt_id)
            started = time.monotonic()
            attempt = await self._attempt(run, run.attempt_id)
            run.worker = attempt.worker
            report = await self._rewarded(run, attempt.report)
            failure, output = report.failure, report.output
            if failure is None:
                await self._succeed(run, run.attempt_id, report)
                return
            self._note(run, failure, seconds=time.monotonic() - started)
            run.attempt_id = None
            wait = policy.wait(failure, attempts=run.attempts, left=run.left)
            if wait is None:
                break
            await asyncio.sleep(wait)
        await self.fail(run, self._final(run, failure), output=output)

    def _note(self, run: Run, failure: Failure, *, seconds: float) -> None:
        run.failures.append(
            {
                "attempt_id": run.attempt_id,
                "boundary": failure.boundary,
                "message": failure.message,
                "worker": run.worker,
                "seconds": round(seconds, 3),
            }
        )
        self._monitor.failed_attempts[failure.boundary] += 1
        log.warning("attempt failed", rollout_id=run.rollout_id, attempt=run.attempts, error=failure.message)

    def _final(self, run: Run, failure: Failure | None) -> Failure:
        """What the rollout failed of, and whether time was what ended the trying.

        When its time ran out in the last attempt, that is what an earlier one failed of, if there was any.
        """
        if failure is None:
            late = f"the rollout's {run.seconds:.0f} s had passed before its first attempt"
            return Failure(boundary=DEADLINE, message=late)
        number, told = run.attempts, failure
        for at, earlier in reversed(list(enumerate(run.failures, 1))):
            if failure.boundary == TIMEOUT and earlier["boundary"] != TIMEOUT:
                number, told = at, Failure(boundary=earlier["boundary"], message=earlier["message"])
                break
        message = f"attempt {number}: {told.boundary}: {told.message}"
        policy = self._settings.failure_policy
        if policy.retries(failure) and run.attempts != policy.most_attempts:
            message = f"the rollout's {run.seconds:.0f} s passed in attempt {run.attempts}; {message}"
        return Failure(boundary=told.boundary, message=message)

    async def _attempt(self, run: Run, attempt_id: str) -> _Attempt:
        """Have one attempt played. A worker that neither answers in time nor dies is killed.

        The attempt's time begins when it has a worker; it waits for one until the rollout's deadline.
        """
        if not run.native and not self._allowed(run.agent_class or ""):
            message = f"{run.agent_class} is not among the classes that this pool may run (--allow-agent)"
            return _refused(attempt_id, NOT_ALLOWED, message)
        try:
            job = self._job(run, attempt_id)
        except ConfigError as cause:
            return _refused(attempt_id, cause.boundary, cause.message)
        link: Link | None = None
        waited = run.left
        try:
            async with AsyncExitStack() as held:
                async with asyncio.timeout(waited):
                    link = await held.enter_async_context(self._worker(run, job))
                seconds = self._settings.failure_policy.seconds(max(0.0, run.left))
                report = await self._play_on(link, job.model_copy(update={"seconds": seconds}))
            if report.failure and report.failure.boundary == IMPORT:
                await self._crew.retire(run.agent_class or "")
            return _Attempt(report, link.name)
        except TimeoutError:
            failure = Failure(boundary=TIMEOUT, message=f"no worker became free within {waited:.0f} s")
        except WorkerLost as cause:
            failure = Failure(boundary=WORKER, message=f"{link.name if link else 'a worker'} was lost: {cause}")
        except S3AgentError as cause:
            failure = Failure(boundary=cause.boundary, message=str(cause), retried=False)
        return _Attempt(Report(attempt_id=attempt_id, failure=failure), link.name if link else "")

    @staticmethod
    async def _play_on(link: Link, job: Job) -> Report:
        """The worker's report; one that says so of a worker that had to be killed. Raises WorkerLost."""
        try:
            async with asyncio.timeout(job.seconds + HUNG_AFTER_S) as limit:
                try:
                    return await link.play(job)
                except asyncio.CancelledError:
                    if limit.expired():
                        link.kill()
                    raise
        except TimeoutError:
            message = f"the worker hung and was killed after {job.seconds:.0f} s"
            return Report(attempt_id=job.attempt_id, failure=Failure(boundary=TIMEOUT, message=message))

    async def _rewarded(self, run: Run, report: Report) -> Report:
        """The report with its reward. An attempt without one has failed: the trainer would fill in a zero."""
        if report.failure is not None or report.reward is not None:
            return report
        reward, message = None, "the worker reported neither a reward nor a failure"
        if not run.native:  # it has posted the reward itself
            reward = await self._gateway.reward(run.rollout_id)
            message = "the class exited with code 0 and posted no reward that is a finite number"
        if reward is None:
            return report.model_copy(update={"failure": Failure(boundary=REWARD, message=message)})
        return report.model_copy(update={"reward": reward})

    def _worker(self, run: Run, job: Job) -> AbstractAsyncContextManager[Link]:
        if run.native:
            return self._crew.native(avoid=run.worker)
        return self._crew.forked(run.agent_class or "", names=tuple(sorted(job.environment)))

    def _allowed(self, agent_class: str) -> bool:
        allowed, path = self._settings.allowed, class_path(agent_class) or ""
        return not allowed or any(fnmatchcase(path, pattern) for pattern in allowed)

    def _job(self, run: Run, attempt_id: str) -> Job:
        """The job, whose time is not set yet. Raises ConfigError."""
        rollout, log_path, environment = run.rollout, None, {}
        policy_url = self._gateway.policy_url(rollout, attempt_id)
        event_url = self._gateway.url + self._gateway.event_path(rollout.rollout_id, attempt_id)
        if not run.native:
            environment = environment_of(rollout, key=self._key, policy_url=policy_url, event_url=event_url)
            if self._settings.agent_logs:
                log_path = str((Path(self._settings.agent_logs) / f"{attempt_id}.log").resolve())
        return Job(
            rollout_id=rollout.rollout_id,
            attempt_id=attempt_id,
            is_train=rollout.is_train,
            input=rollout.input,
            policy_url=policy_url,
            event_url=event_url,
            seconds=0.0,
            seed=rollout.metadata.seed,
            agent_class=run.agent_class,
            environment=environment,
            log_path=log_path,
        )

    async def _succeed(self, run: Run, attempt_id: str, report: Report) -> None:
        reward, reporting = report.reward, time.monotonic()
        assert reward is not None, "an attempt without a reward has failed"
        if run.native:  # a class has posted its own
            await self._gateway.post_reward(run.rollout_id, attempt_id, reward)
        reported = await self._report(self._gateway.succeed(run.rollout_id, attempt_id))
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

    async def fail(self, run: Run, failure: Failure, *, output: str = "") -> None:
        """End the rollout without a reward."""
        attempt_id = self.new_attempt_id()
        reported = await self._report(self._gateway.fail(run.rollout_id, attempt_id, failure.message))
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

    def _write(self, run: Run, record: dict[str, Any], *, boundary: str | None = None, **fields: Any) -> None:
        rollout, finished_at = run.rollout, time.time()
        timings = {**record.pop("timings", {}), "total_s": finished_at - run.started_at}
        if rollout.status.created_at is not None:
            timings["queued_s"] = max(0.0, run.started_at - rollout.status.created_at)
        self._monitor.ended(timings, reward=fields.get("reward"), boundary=boundary)
        if not self._episodes.kept:
            return
        row = {
            "rollout_id": rollout.rollout_id,
            "attempts": run.attempts,
            "is_train": rollout.is_train,
            "task": _task_row(rollout.input),
            "agent_class": run.agent_class,
            "worker": run.worker or None,
            "failures": run.failures,
            "started_at": run.started_at,
            "finished_at": finished_at,
            "timings": {name: round(seconds, 4) for name, seconds in timings.items()},
            **record,
            **fields,
        }
        try:
            self._episodes.write(row)
        except DataError as error:
            # Its rollout has ended at the gateway: the record waits in memory for room on the disk.
            if self._episodes.waiting > MOST_WAITING:
                raise
            log.error("an episode could not be written", error=str(error), waiting=self._episodes.waiting)
