"""What tests of the worker pool share: fakes with a story, a pool in this process and one in processes of its own."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.real_gateway import KEY, GatewayApi
from s3_agent.agents.base import Limits
from s3_agent.clients.generator import GeneratorSettings
from s3_agent.data.tasks import read_jsonl
from s3_agent.embedded import NANO_POLICY
from s3_agent.errors import GeneratorError
from s3_agent.processes.run_folder import EPISODES, POOL_LOG
from s3_agent.rollout.episode_log import EpisodeRecord
from s3_agent.rollout.failure_policy import FailurePolicy
from s3_agent.rollout.jobs import AttemptResult, Job
from s3_agent.rollout.pool.monitor import Monitor
from s3_agent.rollout.pool.settings import PoolSettings
from s3_agent.rollout.pool.supervisor import Supervisor
from s3_agent.rollout.runner import AgentSettings
from s3_agent.rollout.worker.native import WorkerSettings
from s3_agent.rollout.worker.worker import NativeWorker
from s3_agent.types import Passage

ROOT = Path(__file__).parents[1]
NORWAY = Passage(id="1", title="Norway", text="The currency of Norway is Krone.")
SPAIN = Passage(id="2", title="Spain", text="The currency of Spain is Euro.")
QUICK = FailurePolicy(first_wait_s=0.05, longest_wait_s=0.2)
_POOL = """
import sys
from s3_agent.logs import set_up_log
from s3_agent.rollout.worker.native import WorkerSettings
from s3_agent.rollout.pool.pool import run_pool
from s3_agent.rollout.pool.settings import PoolSettings
set_up_log()
pool, worker = PoolSettings.model_validate_json(sys.argv[1]), WorkerSettings.model_validate_json(sys.argv[2])
raise SystemExit(run_pool(pool, worker))
"""


def until[T](condition: Callable[[], T], *, within_s: float = 40.0) -> T:
    """The first true value of `condition`."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return value


def task(number: object, *, question: str = "What is the currency of Norway?") -> dict[str, Any]:
    return {"id": f"t{number}", "question": question, "golden_answers": ["Krone"], "rag_score": 0}


def searcher(prompt: str) -> str:
    """Searches once, then marks the first passage and finishes."""
    if prompt.count("</information>") == 1:
        return '<search_complete>False</search_complete>\n<query>{"query": "currency of Norway"}</query>'
    return "<important_info>[1]</important_info>\n<search_complete>True</search_complete><|im_end|>"


def reader(question: str, context: str) -> str:
    """Answers what the context holds, and never the question that it is told to fail at."""
    if "unanswerable" in question:
        raise GeneratorError("no answer to this one")
    return "It is the Krone." if "Krone" in context else "I do not know."


def worker_settings(retriever_url: str, generator_url: str, **changes: Any) -> WorkerSettings:
    limits = Limits(initial_topk=1, topk=1, max_searches=2, max_new_tokens=64, max_context_tokens=1024)
    settings = WorkerSettings(
        gateway_key=KEY,
        retriever_url=retriever_url,
        generator_url=f"{generator_url}/v1",
        policy_tokenizer=str(NANO_POLICY),
        agent=AgentSettings(prompt="compact", limits=limits),
        generator=GeneratorSettings(model="fake", patience_s=0.2),
    )
    return settings.model_copy(update=changes)


def pool_settings(gateway: GatewayApi, folder: Path, pool_id: str, **changes: Any) -> PoolSettings:
    settings = PoolSettings(
        gateway_url=gateway.url,
        gateway_patience_s=2.0,
        pool_id="".join(letter if letter.isalnum() else "-" for letter in pool_id)[:40],
        failure_policy=QUICK,
        episodes=str(folder / EPISODES),
        pool_log=str(folder / POOL_LOG),
    )
    return settings.model_copy(update=changes)


def records(settings: PoolSettings) -> dict[str, EpisodeRecord]:
    parsed = [EpisodeRecord.model_validate(row) for row in read_jsonl(Path(settings.episodes or ""))]
    assert len({record.rollout_id for record in parsed}) == len(parsed), "each rollout ends once"
    return {record.rollout_id: record for record in parsed}


class _InProcessLink:
    def __init__(self, name: str, worker: NativeWorker) -> None:
        self.name, self._worker = name, worker

    async def play(self, job: Job) -> AttemptResult:
        return await self._worker.play(job)

    async def wait_lost(self) -> str:
        return await asyncio.get_running_loop().create_future()

    def kill(self) -> None:
        raise AssertionError("nothing to kill in this process")


class InProcessLauncher:
    """Native workers without a process: the seam at which other launchers take part, and quick tests."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._worker = NativeWorker(settings)

    async def start_native(self, index: int) -> _InProcessLink:
        return _InProcessLink(f"worker-{index}", self._worker)

    async def start_forked(self, agent_class: str, *, names: tuple[str, ...] = ()) -> _InProcessLink:
        raise AssertionError(f"no processes for {agent_class} here")

    async def retire(self, agent_class: str) -> None:
        raise AssertionError(f"no processes of {agent_class} here")

    async def close(self) -> None:
        await self._worker.close()


def make_supervisor(settings: PoolSettings, worker: WorkerSettings) -> Supervisor:
    return Supervisor(settings, worker, InProcessLauncher(worker), monitor=Monitor())


async def work(gateway: GatewayApi, rollout_ids: list[str], *supervisors: Supervisor) -> None:
    """Let the pools play until the rollouts have ended, then stop them."""
    running = [asyncio.create_task(supervisor.run()) for supervisor in supervisors]
    async with asyncio.timeout(40):
        while gateway.states(rollout_ids) - {"succeeded", "failed"}:
            for ended in (task for task in running if task.done()):
                ended.result()
                raise AssertionError("a pool ended by itself")
            await asyncio.sleep(0.05)
    for supervisor in supervisors:
        supervisor.stop()
    await asyncio.gather(*running)


def gone(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


class Pool:
    """A worker pool in processes of its own. It logs to the file `log`, or to standard error."""

    def __init__(
        self, settings: PoolSettings, worker: WorkerSettings, *, environment: dict[str, str], log: Path | None = None
    ) -> None:
        command = [sys.executable, "-c", _POOL, settings.model_dump_json(), worker.model_dump_json()]
        with log.open("ab") if log else nullcontext() as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, start_new_session=True, stderr=output, env={**os.environ, **environment}
            )

    def zygotes(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children()
        return []

    def workers(self) -> list[psutil.Process]:
        """The worker processes that live: children of the pool's zygotes."""
        found = []
        for zygote in self.zygotes():
            with suppress(psutil.NoSuchProcess):
                found += zygote.children()
        return [process for process in found if not gone(process)]

    def family(self) -> list[psutil.Process]:
        """Every process of the pool but itself."""
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


@contextmanager
def started(
    settings: PoolSettings, worker: WorkerSettings, *, log: Path | None = None, **environment: str
) -> Iterator[Pool]:
    pool = Pool(settings, worker, environment=environment, log=log)
    try:
        yield pool
    finally:
        family = pool.family()
        with suppress(ProcessLookupError):
            pool.process.kill()
        pool.process.wait()
        _, alive = psutil.wait_procs(family, timeout=10)
        assert not alive, f"left behind: {alive}"
