"""A native worker process: plays many attempts at a time and reports the result of each. It never patches a rollout.

It ends when its socket ends, so that no worker of a killed supervisor continues to report. Every attempt gets a result,
whatever its agent returns or raises, unless it was cancelled: without one, the supervisor would wait until the
rollout's deadline.
"""

import asyncio
import math
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import structlog

from s3_agent.clients.http import attempt_ends
from s3_agent.errors import BoundaryError, S3AgentError
from s3_agent.logs import set_up_log
from s3_agent.rollout.cancelling import cancelled_by
from s3_agent.rollout.failure_policy import AGENT, REWARD, TIMEOUT
from s3_agent.rollout.jobs import AttemptResult, Failure, Job
from s3_agent.rollout.worker.native import NativeAgent, Played, RecipeAgent, WorkerSettings, native_class

log = structlog.get_logger()

LONGEST_MESSAGE = 1 << 28
SUPERVISOR_LOST = 1


class NativeWorker:
    """Plays jobs. The agents are made when they are first needed."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._agents: dict[Any, NativeAgent] = {}

    def _agent(self, agent_class: str | None) -> NativeAgent:
        kind = native_class(agent_class)
        if kind not in self._agents:
            self._agents[kind] = kind(self._settings)
        return self._agents[kind]

    async def play(self, job: Job) -> AttemptResult:
        """Play one attempt; whatever goes wrong is in the result. Raises CancelledError when it is cancelled."""
        limit = asyncio.timeout(job.seconds)
        try:
            async with limit:
                with attempt_ends(job.seconds):
                    played = await self._agent(job.agent_class).play(job)
            return _report(job, played)
        except BoundaryError as cause:
            # Refused, not unreachable: the same request would be refused again.
            return _failed(job, cause.boundary, str(cause), retried=cause.status is None)
        except S3AgentError as cause:
            return _failed(job, cause.boundary, f"{cause.boundary}: {cause}", retried=False)
        except asyncio.CancelledError as cause:
            if (playing := asyncio.current_task()) and playing.cancelling():
                raise
            return _raised(job, cause)
        except (Exception, SystemExit) as cause:  # an agent that exits must not end the other attempts
            if limit.expired():
                return _failed(job, TIMEOUT, f"the attempt did not end within {job.seconds:.1f} s")
            return _raised(job, cause)

    async def close(self) -> None:
        """Close the agents."""
        for agent in self._agents.values():
            await agent.close()


def _report(job: Job, played: Any) -> AttemptResult:
    """The report of an attempt that ended by itself: a reward, or what is wrong with it."""
    reward, record = (played.reward, played.record) if isinstance(played, Played) else (played, {})
    if not isinstance(reward, int | float):
        kind = f"{type(reward).__module__}.{type(reward).__qualname__}".removeprefix("builtins.")
        return _failed(
            job, REWARD, f"the agent returned {kind} for a reward: return a Python number, or Played with one"
        )
    try:
        value = float(reward)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        return _failed(job, REWARD, f"the agent's reward is {value}: it must be a finite number")
    report = AttemptResult(attempt_id=job.attempt_id, reward=value, record=record)
    try:
        report.model_dump_json()
    except Exception as cause:
        return _failed(job, AGENT, f"the agent's record can not be written as JSON: {_described(cause)}")
    return report


def _described(cause: BaseException) -> str:
    return "".join(traceback.format_exception_only(cause)).strip()


def _raised(job: Job, cause: BaseException) -> AttemptResult:
    log.warning("the agent raised", rollout_id=job.rollout_id, error=traceback.format_exc(limit=-3))
    return _failed(job, AGENT, _described(cause))


def _failed(job: Job, boundary: str, message: str, *, retried: bool = True) -> AttemptResult:
    return AttemptResult(
        attempt_id=job.attempt_id, failure=Failure(boundary=boundary, message=message, retried=retried)
    )


async def _serve(worker: NativeWorker, connection: socket.socket) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=connection, limit=LONGEST_MESSAGE)
    playing: dict[str, asyncio.Task[None]] = {}

    async def play(job: Job) -> None:
        report = await worker.play(job)
        writer.write(report.model_dump_json().encode() + b"\n")
        await writer.drain()

    while line := await reader.readline():
        if (cancelled := cancelled_by(line)) is not None:
            if task := playing.get(cancelled):
                task.cancel()
            continue
        job = Job.model_validate_json(line)
        task = playing[job.attempt_id] = asyncio.create_task(play(job))
        # By a callback: a task that is cancelled before it has started runs none of its own code.
        task.add_done_callback(lambda _, attempt_id=job.attempt_id: playing.pop(attempt_id))
    os._exit(SUPERVISOR_LOST)


def prepare_native(settings_json: str) -> Callable[[socket.socket], None]:
    """Load what the workers share; returns the body of each. Raises ConfigError for settings that none could use."""
    set_up_log()
    settings = WorkerSettings.model_validate_json(settings_json)
    RecipeAgent.preload(settings)
    for agent_class in settings.native_agents:
        native_class(agent_class)
    return lambda connection: asyncio.run(_serve(NativeWorker(settings), connection))
