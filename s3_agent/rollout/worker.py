"""One worker process: claims queued rollouts and plays many of them at a time.

Every claimed rollout ends: SUCCEEDED with its reward event, or FAILED on an attempt without events (design §4, §7).
A boundary that fails is tried again under a new attempt id until the rollout's own deadline.
"""

import asyncio
import time
from uuid import uuid4

import httpx
import structlog
from pydantic import BaseModel, ConfigDict, Field

from s3_agent.clients.gateway import Gateway, Rollout
from s3_agent.clients.generator import GeneratorSettings, make_generator
from s3_agent.clients.judge import JudgeSettings, make_judge
from s3_agent.clients.policy import CompletionsPolicy
from s3_agent.clients.retriever import HttpRetriever
from s3_agent.clients.tokenizer import load_tokenizer
from s3_agent.errors import BoundaryError, GatewayError, S3AgentError
from s3_agent.rollout.episode_log import EpisodeLog, EpisodeRecord
from s3_agent.rollout.runner import AgentSettings, run_task
from s3_agent.types import Task

log = structlog.get_logger()

IDLE_POLL_S = 0.2
RETRY_WAIT_S = 1.0
DEADLINE_MARGIN_S = 5.0


class WorkerSettings(BaseModel):
    """Everything a worker process needs; it crosses the process boundary as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gateway_url: str
    gateway_key: str
    gateway_patience_s: float = 60.0
    retriever_url: str
    generator_url: str | None
    policy_tokenizer: str
    pool_id: str = Field(default="pool", pattern=r"^[A-Za-z0-9_.-]+$")
    concurrency: int = Field(default=8, ge=1)
    agent: AgentSettings = Field(default_factory=AgentSettings)
    generator: GeneratorSettings = Field(default_factory=GeneratorSettings)
    judge: JudgeSettings = Field(default_factory=JudgeSettings)
    episodes: str | None = None


class Worker:
    """Number `index` of the pool. Its attempt ids are `{pool_id}-{index}-` and a UUID: it knows its own again."""

    def __init__(self, settings: WorkerSettings, index: int) -> None:
        self._settings = settings
        self._name = f"{settings.pool_id}-{index}"
        self._log = EpisodeLog(settings.episodes)
        self._stopping = asyncio.Event()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=settings.concurrency * 2)
        headers = {"Authorization": f"Bearer {settings.gateway_key}"}
        timeout = httpx.Timeout(300.0, connect=10.0)
        self._http = httpx.AsyncClient(timeout=timeout, limits=limits)
        self._gateway_http = httpx.AsyncClient(timeout=timeout, limits=limits, headers=headers)
        self._gateway = Gateway(self._gateway_http, settings.gateway_url, patience_s=settings.gateway_patience_s)
        self._tokenizer = load_tokenizer(settings.policy_tokenizer)
        self._retriever = HttpRetriever(self._http, settings.retriever_url)
        self._generator = make_generator(self._http, settings.generator_url, settings.generator)
        self._judge = make_judge(self._http, settings.generator_url, settings.judge)

    def stop(self) -> None:
        """Claim no more; `run` returns when what is claimed has ended."""
        self._stopping.set()

    async def run(self) -> None:
        """Claim and play until stopped. Raises GatewayError when the gateway is lost, since its store is in memory."""
        running: set[asyncio.Task[None]] = set()
        try:
            for rollout in await self._gateway.rollouts("running", limit=100_000):
                if (rollout.status.last_attempt_id or "").rpartition("-")[0] == self._name:
                    log.info("adopted", rollout_id=rollout.rollout_id)
                    running.add(asyncio.create_task(self._play(rollout, None)))
            while not self._stopping.is_set():
                running = {task for task in running if not self._ended(task)}
                free = self._settings.concurrency - len(running)
                claimed = await self._claim(free) if free > 0 else []
                running |= {asyncio.create_task(self._play(*claim)) for claim in claimed}
                if not claimed:
                    await self._pause(running if free <= 0 else set())
            await asyncio.gather(*running)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await self._http.aclose()
            await self._gateway_http.aclose()

    @staticmethod
    def _ended(task: asyncio.Task[None]) -> bool:
        if task.done():
            task.result()
        return task.done()

    async def _pause(self, running: set[asyncio.Task[None]]) -> None:
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait(
            {stopping, *running}, timeout=None if running else IDLE_POLL_S, return_when=asyncio.FIRST_COMPLETED
        )
        stopping.cancel()

    async def _claim(self, limit: int) -> list[tuple[Rollout, str]]:
        """At most `limit` rollouts that are now ours, each with the attempt it was claimed under."""
        queued = await self._gateway.rollouts("queuing", limit=limit)
        wanted = [(rollout, self._new_attempt_id()) for rollout in queued]
        return [claim for claim in wanted if await self._gateway.claim(*claim)]

    def _new_attempt_id(self) -> str:
        return f"{self._name}-{uuid4().hex}"

    async def _play(self, rollout: Rollout, attempt_id: str | None) -> None:
        """Play until the rollout has ended; one without an attempt of its own (adopted) starts under a new one."""
        started_at, deadline = time.time(), time.monotonic() + rollout.config.timeout_seconds - DEADLINE_MARGIN_S
        record = {"rollout_id": rollout.rollout_id, "is_train": rollout.is_train, "started_at": started_at}
        attempts, error = 0, ""
        try:
            task = Task.from_row(rollout.input if isinstance(rollout.input, dict) else {})
            record["task"] = task
            while time.monotonic() < deadline:
                attempts += 1
                if attempt_id is None:
                    attempt_id = self._new_attempt_id()
                    await self._gateway.new_attempt(rollout.rollout_id, attempt_id)
                try:
                    async with asyncio.timeout(deadline - time.monotonic()):
                        await self._attempt(rollout, attempt_id, task, attempts, record)
                    return
                except GatewayError:
                    raise
                except BoundaryError as cause:
                    if cause.status is not None:
                        raise  # refused, not unreachable: the same request would be refused again
                    error = f"attempt {attempts}: {cause.boundary}: {cause}"
                    log.warning("attempt failed", rollout_id=rollout.rollout_id, error=error)
                    attempt_id = None
                    await asyncio.sleep(RETRY_WAIT_S)
                except TimeoutError:
                    break
            late = f"the rollout's {rollout.config.timeout_seconds} s passed in attempt {attempts}"
            error = f"{late}; {error}" if error else late
        except GatewayError as cause:
            self._unless_gone(rollout, cause)
            return
        except S3AgentError as cause:
            error = f"{cause.boundary}: {cause}"
        except Exception as cause:
            log.exception("rollout failed", rollout_id=rollout.rollout_id)
            error = f"{type(cause).__name__}: {cause}"
        attempt_id = self._new_attempt_id()
        try:
            await self._gateway.fail(rollout.rollout_id, attempt_id, error)
        except GatewayError as cause:
            self._unless_gone(rollout, cause)
            return
        self._log.write(
            EpisodeRecord(
                **record,
                attempt_id=attempt_id,
                attempts=attempts,
                state="failed",
                error=error,
                finished_at=time.time(),
            )
        )

    @staticmethod
    def _unless_gone(rollout: Rollout, error: GatewayError) -> None:
        """A rollout that the trainer deleted is nobody's any more; any other gateway error ends the worker."""
        if error.status not in (404, 409):
            raise error
        log.warning("rollout is gone", rollout_id=rollout.rollout_id)

    async def _attempt(self, rollout: Rollout, attempt_id: str, task: Task, attempts: int, record: dict) -> None:
        policy = CompletionsPolicy(self._gateway_http, self._gateway.policy_url(rollout, attempt_id), self._tokenizer)
        outcome = await run_task(
            task,
            self._settings.agent,
            policy=policy,
            retriever=self._retriever,
            generator=self._generator,
            judge=self._judge,
        )
        await self._gateway.succeed(rollout.rollout_id, attempt_id, outcome.reward.value)
        self._log.write(
            EpisodeRecord(
                **record,
                attempt_id=attempt_id,
                attempts=attempts,
                state="succeeded",
                episode=outcome.episode,
                answer=outcome.answer,
                reward=outcome.reward.value,
                accuracy=outcome.reward.metrics["accuracy"],
                gbr=outcome.reward.metrics.get("gbr"),
                metrics=outcome.reward.metrics,
                finished_at=time.time(),
                timings={"search_s": outcome.search_s, "answer_s": outcome.answer_s},
            )
        )
