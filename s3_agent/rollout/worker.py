"""A native worker process: plays many attempts at a time and reports what came of each. It never patches a rollout.

It ends when its socket does, so that no worker of a killed supervisor goes on reporting.
"""

import asyncio
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import structlog

from s3_agent.errors import BoundaryError, S3AgentError
from s3_agent.logs import set_up_log
from s3_agent.rollout.failure_policy import AGENT, TIMEOUT
from s3_agent.rollout.jobs import Failure, Job, Report
from s3_agent.rollout.native import NativeAgent, Played, RecipeAgent, WorkerSettings, native_class

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

    async def play(self, job: Job) -> Report:
        """Play one attempt; whatever goes wrong is in the report."""
        limit = asyncio.timeout(job.seconds)
        try:
            async with limit:
                played = await self._agent(job.agent_class).play(job)
        except BoundaryError as cause:
            # Refused, not unreachable: the same request would be refused again.
            return _failed(job, cause.boundary, str(cause), retried=cause.status is None)
        except S3AgentError as cause:
            return _failed(job, cause.boundary, f"{cause.boundary}: {cause}", retried=False)
        except Exception as cause:
            if limit.expired():
                return _failed(job, TIMEOUT, f"the attempt did not end within {job.seconds:.1f} s")
            where = traceback.format_exc(limit=-3)
            log.warning("the agent raised", rollout_id=job.rollout_id, error=where)
            return _failed(job, AGENT, f"{type(cause).__name__}: {cause}")
        if not isinstance(played, Played):
            played = Played(reward=float(played))
        return Report(attempt_id=job.attempt_id, reward=played.reward, record=played.record)

    async def close(self) -> None:
        """Close the agents."""
        for agent in self._agents.values():
            await agent.close()


def _failed(job: Job, boundary: str, message: str, *, retried: bool = True) -> Report:
    return Report(attempt_id=job.attempt_id, failure=Failure(boundary=boundary, message=message, retried=retried))


async def _serve(worker: NativeWorker, connection: socket.socket) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=connection, limit=LONGEST_MESSAGE)
    playing: dict[str, asyncio.Task[None]] = {}

    async def play(job: Job) -> None:
        try:
            report = await worker.play(job)
            writer.write(report.model_dump_json().encode() + b"\n")
            await writer.drain()
        finally:
            del playing[job.attempt_id]

    while line := await reader.readline():
        if line.startswith(b'{"cancel"'):
            if task := playing.get(line.decode().split('"')[3]):
                task.cancel()
            continue
        job = Job.model_validate_json(line)
        playing[job.attempt_id] = asyncio.create_task(play(job))
    os._exit(SUPERVISOR_LOST)


def prepare_native(settings_json: str) -> Callable[[socket.socket], None]:
    """Load what the workers share; the body of each. Raises ConfigError for what none of them could work with."""
    set_up_log()
    settings = WorkerSettings.model_validate_json(settings_json)
    RecipeAgent.preload(settings)
    for agent_class in settings.native_agents:
        native_class(agent_class)
    return lambda connection: asyncio.run(_serve(NativeWorker(settings), connection))
