"""One claimed rollout, from its first attempt to its end.

A rollout ends SUCCEEDED, and its last attempt is the one with the reward; or it ends FAILED, and its last attempt has
no events (docs/promises.md, 1). The failure policy decides whether a failed attempt is followed by another one, with a
new id and on another worker.
"""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from uuid import uuid4

import structlog

from s3_agent.clients.gateway import Gateway, Rollout
from s3_agent.errors import ConfigError, DataError, GatewayError, S3AgentError
from s3_agent.rollout.cancelling import CANCELLED
from s3_agent.rollout.episode_log import EpisodeLog
from s3_agent.rollout.failure_policy import DEADLINE, GONE, IMPORT, NOT_ALLOWED, REWARD, STOPPED, TIMEOUT, WORKER
from s3_agent.rollout.jobs import AttemptResult, Failure, Job
from s3_agent.rollout.pool.contract import class_path, environment_of
from s3_agent.rollout.pool.crew import Crew
from s3_agent.rollout.pool.launcher import Link, WorkerLost
from s3_agent.rollout.pool.monitor import Monitor
from s3_agent.rollout.pool.pool_log import PoolLog
from s3_agent.rollout.pool.recorded import Event, reward_of, untrained_answers
from s3_agent.rollout.pool.settings import PoolSettings
from s3_agent.rollout.worker.native import own_agents
from s3_agent.types import Task

log = structlog.get_logger()

_STOP = Failure(boundary=STOPPED, message="the pool was stopped before the rollout had ended")
_CANCELLED = Failure(boundary=CANCELLED, message="the pool ended before the attempt had ended")
_UNREACHABLE = "the gateway could not be reached"
_REFUSALS = {
    404: "the gateway no longer has the rollout: the trainer has deleted it",
    409: "another process had already ended the rollout",
}
"""Why the gateway refuses to continue a rollout, by the status of its answer."""

HUNG_AFTER_S = 5.0
MOST_WAITING = 1000  # episodes that are kept in memory while the disk is full
NO_DEADLINE_S = 10 * 365 * 86_400.0


@dataclass(slots=True)
class ActiveRollout:
    """A claimed rollout that is being played. `attempt_id` is None when the next attempt needs a new one.

    `worker` has the current attempt, or had the last one; it is empty while the attempt waits for a worker.
    """

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
        """The total time of the rollout; 0 in its configuration means no limit."""
        return float(self.rollout.config.timeout_seconds or NO_DEADLINE_S)

    @property
    def left(self) -> float:
        """Seconds until its deadline."""
        return self.started + self.seconds - time.monotonic()


def _failed(attempt_id: str, boundary: str, message: str, *, retried: bool = True) -> AttemptResult:
    failure = Failure(boundary=boundary, message=message, retried=retried)
    return AttemptResult(attempt_id=attempt_id, failure=failure)


def _task_row(row: Any) -> dict[str, Any] | None:
    try:
        return Task.from_row(row if isinstance(row, dict) else {}).model_dump(mode="json")
    except ConfigError:
        return None


class Player:
    """Plays claimed rollouts with the workers of a crew."""

    def __init__(
        self,
        settings: PoolSettings,
        gateway: Gateway,
        crew: Crew,
        *,
        key: str,
        monitor: Monitor,
        episodes: EpisodeLog,
        events: PoolLog,
    ) -> None:
        self._settings, self._gateway, self._crew, self._key = settings, gateway, crew, key
        self._monitor, self._episodes, self._events = monitor, episodes, events
        self._logged: defaultdict[str | None, set[str]] = defaultdict(set)

    def new_attempt_id(self) -> str:
        """A globally unique id. It starts with the pool's id, so a restarted pool recognizes its own attempts."""
        return f"{self._settings.pool_id}-{uuid4().hex}"

    async def play(self, run: ActiveRollout) -> None:
        """Play until the rollout has ended. Raises GatewayError, with status 404 when the trainer has deleted it."""
        policy = self._settings.failure_policy
        failure, output = None, ""
        while run.left > 0:
            run.attempts += 1
            if run.attempt_id is None:
                run.attempt_id = self.new_attempt_id()
                await self._gateway.new_attempt(run.rollout_id, run.attempt_id)
            started = time.monotonic()
            try:
                report = await self._attempt(run, run.attempt_id)
            except asyncio.CancelledError:  # the worker then sends no result (`cancelling`)
                self._note(run, _CANCELLED, seconds=time.monotonic() - started)
                raise
            report = await self._rewarded(run, report)
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

    def _note(self, run: ActiveRollout, failure: Failure, *, seconds: float) -> None:
        """Record an attempt that failed or was cancelled: in the record, the pool's log and the log lines."""
        failed = {
            "attempt_id": run.attempt_id,
            "boundary": failure.boundary,
            "message": failure.message,
            "worker": run.worker,
            "seconds": round(seconds, 3),
        }
        run.failures.append(failed)
        self._monitor.failed_attempts[failure.boundary] += 1
        self._events.write("attempt_failed", run.rollout_id, attempt=run.attempts, **failed)
        log.warning("attempt failed", rollout_id=run.rollout_id, attempt=run.attempts, **failed)

    def _final(self, run: ActiveRollout, failure: Failure | None) -> Failure:
        """Why the rollout failed, and whether its time ran out while it could still be tried again.

        If the last attempt only timed out, report the last earlier error that was not a timeout.
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

    async def _attempt(self, run: ActiveRollout, attempt_id: str) -> AttemptResult:
        """Let a worker play one attempt. A worker that neither answers in time nor ends is killed.

        The attempt waits for a worker until the rollout's deadline; its time starts when it has one.
        """
        avoid, run.worker = run.worker, ""
        if not run.native and not self._allowed(run.agent_class or ""):
            message = f"{run.agent_class} is not among the classes that this pool may run (--allow-agent)"
            return _failed(attempt_id, NOT_ALLOWED, message, retried=False)
        try:
            job = self._job(run, attempt_id)
        except ConfigError as cause:
            return _failed(attempt_id, cause.boundary, cause.message, retried=False)
        waited = run.left
        try:
            async with AsyncExitStack() as held:
                async with asyncio.timeout(waited):
                    link = await held.enter_async_context(self._worker(run, job, avoid=avoid))
                run.worker = link.name
                seconds = self._settings.failure_policy.seconds(max(0.0, run.left))
                self._events.write(
                    "attempt_started",
                    run.rollout_id,
                    attempt_id=attempt_id,
                    attempt=run.attempts,
                    worker=link.name,
                    seconds=round(seconds, 3),
                )
                report = await self._play_on(link, job.model_copy(update={"seconds": seconds}))
            if report.failure and report.failure.boundary == IMPORT:
                await self._crew.retire(run.agent_class or "")
            return report
        except TimeoutError:
            return _failed(attempt_id, TIMEOUT, f"no worker became free within {waited:.0f} s")
        except WorkerLost as cause:
            return _failed(attempt_id, WORKER, f"{run.worker or 'a worker'} was lost: {cause}")
        except S3AgentError as cause:
            return _failed(attempt_id, cause.boundary, str(cause), retried=False)

    @staticmethod
    async def _play_on(link: Link, job: Job) -> AttemptResult:
        """The worker's report, or a report that the worker hung and was killed. Raises WorkerLost."""
        try:
            async with asyncio.timeout(job.seconds + HUNG_AFTER_S) as limit:
                try:
                    return await link.play(job)
                except asyncio.CancelledError:
                    if limit.expired():
                        link.kill()
                    raise
        except TimeoutError:
            return _failed(job.attempt_id, TIMEOUT, f"the worker hung and was killed after {job.seconds:.0f} s")

    async def _rewarded(self, run: ActiveRollout, report: AttemptResult) -> AttemptResult:
        """The report with its reward. An attempt without one has failed: the trainer would fill in a zero."""
        if report.failure is not None:
            return report
        if run.native and report.reward is None:
            failure = Failure(boundary=REWARD, message="the worker reported neither a reward nor a failure")
            return report.model_copy(update={"failure": failure})
        if run.agent_class in own_agents():
            return report
        events = await self._gateway.events(run.rollout_id, event_type=None if run.rollout.is_train else "reward")
        if not run.native:  # the class has posted the reward itself
            try:
                report = report.model_copy(update={"reward": reward_of(events)})
            except ValueError as cause:
                failure = Failure(boundary=REWARD, message=f"the class exited with code 0 and {cause}")
                return report.model_copy(update={"failure": failure})
        return report.model_copy(update={"record": self._with_untrained(run, report.record, events)})

    def _with_untrained(self, run: ActiveRollout, record: dict[str, Any], events: Sequence[Event]) -> dict[str, Any]:
        """The record with the number of answers that the trainer will leave out. A reason is logged once per class."""
        untrained = untrained_answers(events) if run.rollout.is_train else Counter()
        for reason in untrained.keys() - self._logged[run.agent_class]:
            self._logged[run.agent_class].add(reason)
            log.warning(
                "answers of the policy are not trained",
                reason=reason,
                agent_class=run.agent_class,
                rollout_id=run.rollout_id,
                answers=untrained[reason],
            )
        if not untrained:
            return record
        metrics = record.get("metrics")
        metrics = metrics if isinstance(metrics, dict) else {}
        return {**record, "metrics": {**metrics, "answers_untrained": float(untrained.total())}}

    def _worker(self, run: ActiveRollout, job: Job, *, avoid: str) -> AbstractAsyncContextManager[Link]:
        if run.native:
            return self._crew.native(avoid=avoid)
        return self._crew.forked(run.agent_class or "", names=tuple(sorted(job.environment)))

    def _allowed(self, agent_class: str) -> bool:
        allowed, path = self._settings.allowed, class_path(agent_class) or ""
        return not allowed or any(fnmatchcase(path, pattern) for pattern in allowed)

    def _job(self, run: ActiveRollout, attempt_id: str) -> Job:
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

    async def _succeed(self, run: ActiveRollout, attempt_id: str, report: AttemptResult) -> None:
        reward, reporting = report.reward, time.monotonic()
        assert reward is not None, "an attempt without a reward has failed"

        async def post() -> None:
            if run.native:  # a class has posted its own
                await self._gateway.post_reward(run.rollout_id, attempt_id, reward)
            await self._gateway.succeed(run.rollout_id, attempt_id)

        refused = await self._report(run, post())
        record = dict(report.record)
        record["timings"] = {**record.get("timings", {}), "report_s": time.monotonic() - reporting}
        output = report.output or None
        self._write(run, record, refused, attempt_id=attempt_id, state="succeeded", reward=reward, output=output)

    async def fail(self, run: ActiveRollout, failure: Failure, *, output: str = "") -> None:
        """End the rollout without a reward. Raises GatewayError when the gateway can not be reached."""
        attempt_id = self.new_attempt_id()
        refused = await self._report(run, self._gateway.fail(run.rollout_id, attempt_id, failure.message))
        self._write_failed(run, failure, refused, attempt_id=attempt_id, output=output or None)

    async def stop(self, run: ActiveRollout) -> None:
        """End the rollout because the pool stops. It has a record even when the gateway stopped first."""
        try:
            await self.fail(run, _STOP)
        except GatewayError as error:
            log.warning("a stopped rollout could not be reported", rollout_id=run.rollout_id, error=error.message)
            self._write_failed(run, _STOP, _UNREACHABLE, attempt_id="")

    def forget(self, run: ActiveRollout, refusal: GatewayError) -> None:
        """Record a rollout that the gateway refused to continue. Raises any other error of the gateway."""
        gone = Failure(boundary=GONE, message=self._refused(run, refusal))
        self._write_failed(run, gone, gone.message, attempt_id="")

    def _write_failed(self, run: ActiveRollout, failure: Failure, refused: str | None, **fields: Any) -> None:
        self._write(run, {}, refused, state="failed", error=failure.message, boundary=failure.boundary, **fields)

    async def _report(self, run: ActiveRollout, end: Awaitable[None]) -> str | None:
        """Why the gateway did not accept the end; None when it did. Raises GatewayError when it can not be reached."""
        try:
            await end
        except GatewayError as error:
            return self._refused(run, error)
        return None

    def _refused(self, run: ActiveRollout, error: GatewayError) -> str:
        if error.status not in _REFUSALS:
            raise error
        log.warning("rollout is gone", rollout_id=run.rollout_id, status=error.status, error=error.message)
        return _REFUSALS[error.status]

    def _write(self, run: ActiveRollout, record: dict[str, Any], refused: str | None, **fields: Any) -> None:
        """Count the end of the rollout and keep its record. `refused` says why the gateway did not accept the end."""
        rollout, finished_at = run.rollout, time.time()
        timings = {**record.pop("timings", {}), "total_s": finished_at - run.started_at}
        if rollout.status.created_at is not None:
            timings["queued_s"] = max(0.0, run.started_at - rollout.status.created_at)
        fields["reported"] = refused is None
        if refused is None:
            self._monitor.ended(timings, reward=fields.get("reward"), boundary=fields.get("boundary"))
        else:  # the gateway no longer has the rollout, or another process has ended it
            self._monitor.gone += 1
            fields["error"] = "; ".join(dict.fromkeys(filter(None, (refused, fields.get("error")))))
        self._events.write(
            "ended",
            run.rollout_id,
            attempt_id=fields["attempt_id"],
            state=fields["state"],
            boundary=fields.get("boundary"),
            message=fields.get("error"),
            reported=fields["reported"],
        )
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
