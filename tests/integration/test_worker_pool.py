"""The real gateway, worker and pool over real HTTP; policy, retriever and generator are fakes (promises 1, 2 and 3)."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from fastapi import FastAPI

from s3_agent.agents.base import Limits
from s3_agent.clients.fake_servers import generator_app, policy_app, retriever_app, serve
from s3_agent.clients.fakes import FakeGenerator, FakePolicy, FakeRetriever
from s3_agent.clients.generator import GeneratorSettings
from s3_agent.clients.tokenizer import load_tokenizer
from s3_agent.embedded import NANO_POLICY
from s3_agent.errors import GeneratorError
from s3_agent.launch.commands import gateway_command
from s3_agent.launch.ports import reserve_port
from s3_agent.recipe import load_recipe
from s3_agent.rollout import worker as worker_module
from s3_agent.rollout.episode_log import EpisodeRecord
from s3_agent.rollout.pool import GATEWAY_LOST
from s3_agent.rollout.runner import AgentSettings
from s3_agent.rollout.worker import Worker, WorkerSettings
from s3_agent.types import Passage

KEY = "integration"
DOWN = 1_000_000
NORWAY = Passage(id="1", title="Norway", text="The currency of Norway is Krone.")
SPAIN = Passage(id="2", title="Spain", text="The currency of Spain is Euro.")
POOL = """
import sys
from s3_agent.rollout.pool import WorkerPool
from s3_agent.rollout.worker import WorkerSettings
raise SystemExit(WorkerPool(WorkerSettings.model_validate_json(sys.argv[1]), processes=int(sys.argv[2])).run())
"""


def until[T](condition: Callable[[], T], *, within_s: float = 40.0) -> T:
    """The first true value of `condition`."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return value


class GatewayApi:
    """The trainer's side of the gateway."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"})

    def enqueue(self, *inputs: Any, timeout_s: int = 60) -> list[str]:
        rows = [{"input": row, "config": {"timeout_seconds": timeout_s}} for row in inputs]
        return [row["rollout_id"] for row in self.http.post("/api/rollouts", json=rows).raise_for_status().json()]

    def detail(self, rollout_id: str) -> dict[str, Any]:
        return self.http.get(f"/api/rollouts/{rollout_id}").raise_for_status().json()

    def status(self, rollout_id: str) -> dict[str, Any]:
        return self.detail(rollout_id)["rollout"]["status"]

    def states(self, rollout_ids: list[str]) -> set[str]:
        return {self.status(rollout_id)["state"] for rollout_id in rollout_ids}

    def events(self, rollout_id: str) -> list[dict[str, Any]]:
        return self.http.get(f"/api/rollouts/{rollout_id}/events").raise_for_status().json()

    def rewards(self, rollout_id: str) -> list[float]:
        return [event["data"]["value"] for event in self.events(rollout_id) if event["event_type"] == "reward"]


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


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayApi]:
    folder, port = tmp_path_factory.mktemp("gateway"), reserve_port("gateway", 0)
    command = gateway_command(load_recipe("cpu"), port=port, folder=folder)
    with (folder / "gateway.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env={**os.environ, "AGL_KEY": KEY}, start_new_session=True
        )
    api = GatewayApi(f"http://127.0.0.1:{port}")
    policy = FakePolicy(searcher, load_tokenizer(str(NANO_POLICY)))

    def ready() -> bool:
        assert process.poll() is None, (folder / "gateway.log").read_text()
        with suppress(httpx.TransportError):
            return api.http.get("/api/rollouts", params={"state_in": "queuing"}).is_success
        return False

    try:
        with serve(policy_app(policy)) as policy_url:
            until(ready)
            model = {"model": str(NANO_POLICY), "endpoint": f"{policy_url}/v1"}
            api.http.post("/api/models", json=[model]).raise_for_status()
            yield api
    finally:
        process.kill()
        process.wait()
        api.http.close()


@pytest.fixture(scope="module")
def retriever_url() -> Iterator[str]:
    with serve(retriever_app(FakeRetriever({"currency of Norway": [NORWAY]}, default=[SPAIN]))) as url:
        yield url


@pytest.fixture
def generator() -> FakeGenerator:
    return FakeGenerator(reader)


@pytest.fixture
def settings(
    gateway: GatewayApi, retriever_url: str, generator: FakeGenerator, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[WorkerSettings]:
    limits = Limits(initial_topk=1, topk=1, max_searches=2, max_new_tokens=64, max_context_tokens=1024)
    with serve(generator_app(generator)) as url:
        yield WorkerSettings(
            gateway_url=gateway.url,
            gateway_key=KEY,
            gateway_patience_s=2.0,
            retriever_url=retriever_url,
            generator_url=f"{url}/v1",
            policy_tokenizer=str(NANO_POLICY),
            pool_id=request.node.name[:40].replace("[", "-").replace("]", ""),
            agent=AgentSettings(prompt="compact", limits=limits),
            generator=GeneratorSettings(model="fake", patience_s=0.2),
            episodes=str(tmp_path / "episodes.jsonl"),
        )


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "RETRY_WAIT_S", 0.05)
    monkeypatch.setattr(worker_module, "DEADLINE_MARGIN_S", 0.0)


def records(settings: WorkerSettings) -> dict[str, EpisodeRecord]:
    lines = Path(settings.episodes or "").read_text(encoding="utf-8").splitlines()
    parsed = [EpisodeRecord.model_validate_json(line) for line in lines]
    assert len({record.rollout_id for record in parsed}) == len(parsed), "each rollout ends once"
    return {record.rollout_id: record for record in parsed}


async def work(gateway: GatewayApi, rollout_ids: list[str], *workers: Worker) -> None:
    """Let the workers play until the rollouts have ended, then stop them."""
    running = [asyncio.create_task(worker.run()) for worker in workers]
    async with asyncio.timeout(40):
        while gateway.states(rollout_ids) - {"succeeded", "failed"}:
            assert not any(task.done() for task in running), "a worker ended by itself"
            await asyncio.sleep(0.05)
    for worker in workers:
        worker.stop()
    await asyncio.gather(*running)


async def test_every_rollout_ends_with_one_reward_event(gateway: GatewayApi, settings: WorkerSettings) -> None:
    good = gateway.enqueue(*map(task, range(4)))
    [wrong] = gateway.enqueue({**task("wrong"), "golden_answers": ["Dirham"]})
    await work(gateway, [*good, wrong], Worker(settings, 0))
    assert gateway.states([*good, wrong]) == {"succeeded"}
    assert [gateway.rewards(rollout_id) for rollout_id in good] == [[1.0]] * 4
    assert gateway.rewards(wrong) == [0.0]
    record = records(settings)[good[0]]
    assert (record.state, record.attempts, record.reward, record.gbr) == ("succeeded", 1, 1.0, 1.0)
    assert record.attempt_id == gateway.status(good[0])["last_attempt_id"]
    assert record.episode is not None and record.episode.selected == (NORWAY, SPAIN)


async def test_a_generator_that_recovers_gets_a_new_attempt(
    gateway: GatewayApi, settings: WorkerSettings, generator: FakeGenerator
) -> None:
    generator.failures = 3
    [rollout_id] = gateway.enqueue(task(1))
    await work(gateway, [rollout_id], Worker(settings, 0))
    attempts = gateway.detail(rollout_id)["attempts"]
    assert len(attempts) >= 2
    assert gateway.status(rollout_id)["last_attempt_id"] == attempts[-1]
    assert gateway.rewards(rollout_id) == [1.0]
    kinds = [event["event_type"] for event in gateway.events(rollout_id)]
    assert kinds == ["model_request", "model_request", "reward"], "an attempt starts from nothing"
    assert records(settings)[rollout_id].attempts == len(attempts)


async def test_the_trainer_gets_one_row_for_each_success_and_none_for_a_failure(
    gateway: GatewayApi, settings: WorkerSettings
) -> None:
    good = gateway.enqueue(*map(task, range(3)))
    [failed] = gateway.enqueue(task("down", question="unanswerable?"), timeout_s=2)
    await work(gateway, [*good, failed], Worker(settings, 0))
    status = gateway.status(failed)
    assert status["state"] == "failed"
    assert "2 s passed" in status["error_message"]
    assert "generator" in status["error_message"] and "status 500" in status["error_message"]
    assert gateway.events(failed) == []
    assert len(gateway.detail(failed)["attempts"]) >= 2, "it was tried again until its deadline"

    import torch
    from agentlightning.schemas import Rollout
    from agentlightning.verl.agl_rollout_manager import AglRolloutManagerBase, EnqueuedRollout
    from agentlightning.verl.rollout_adapter import RolloutAdapter

    manager = AglRolloutManagerBase(agl_base_url=gateway.url, agl_key=KEY, model="", step=0)
    completed = [
        manager._build_completed_rollout(
            EnqueuedRollout(data_id=rollout_id, rollout_id=rollout_id, step=0, sample_idx_in_step=at, enqueue_time=0.0),
            Rollout.model_validate(gateway.detail(rollout_id)["rollout"]),
        )
        for at, rollout_id in enumerate([*good, failed])
    ]
    adapter = RolloutAdapter(
        max_prompt_length=512,
        max_response_length=512,
        device=torch.device("cpu"),
        pad_token_id=0,
        trace_aggregator_level="trajectory",
    )
    batch, metrics = adapter.get_train_data_batch(completed)
    assert list(batch.non_tensor_batch["rollout_id_list"]) == good
    assert metrics["training/n_unmerged_rollouts"] == metrics["training/n_truncated_sample"] == 0
    assert not batch.batch["is_drop_mask"].any()
    tokenizer = load_tokenizer(str(NANO_POLICY))
    played = records(settings)
    for row, rollout_id in enumerate(good):
        ids = batch.batch["input_ids"][row][batch.batch["attention_mask"][row].bool()].tolist()
        episode = played[rollout_id].episode
        assert episode is not None
        prompt = tokenizer.decode(tokenizer.chat(episode.prompt))
        assert tokenizer.decode(ids) == prompt + episode.text
        trained = batch.batch["responses"][row][batch.batch["response_mask"][row].bool()].tolist()
        assert tokenizer.decode(trained) == "".join(turn.response for turn in episode.turns)
    assert batch.batch["token_level_scores"].sum().item() == 3.0


@pytest.mark.parametrize(
    ("row", "named"),
    [({"id": "x", "question": "q"}, "golden_answers"), ("not a row", "question"), (None, "question")],
    ids=["incomplete", "text", "nothing"],
)
async def test_a_bad_task_row_fails_its_rollout_alone(
    gateway: GatewayApi, settings: WorkerSettings, row: Any, named: str
) -> None:
    bad, good = gateway.enqueue(row, task(1))
    await work(gateway, [bad, good], Worker(settings, 0))
    status = gateway.status(bad)
    assert status["state"] == "failed"
    assert "not a task row" in status["error_message"] and named in status["error_message"]
    assert gateway.events(bad) == []
    assert gateway.rewards(good) == [1.0]
    assert records(settings)[bad].attempts == 0


async def test_a_refused_request_is_not_tried_again(gateway: GatewayApi, settings: WorkerSettings) -> None:
    refusing = settings.model_copy(update={"generator_url": f"{settings.generator_url}/nowhere"})
    [rollout_id] = gateway.enqueue(task(1))
    await work(gateway, [rollout_id], Worker(refusing, 0))
    assert "generator" in gateway.status(rollout_id)["error_message"]
    assert "404" in gateway.status(rollout_id)["error_message"]
    assert records(settings)[rollout_id].attempts == 1
    assert gateway.events(rollout_id) == []


async def test_a_rollout_without_time_for_an_attempt_says_so(
    gateway: GatewayApi, settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "DEADLINE_MARGIN_S", 5.0)
    [rollout_id] = gateway.enqueue(task(1), timeout_s=5)
    await work(gateway, [rollout_id], Worker(settings, 0))
    assert "5 s passed in attempt 0" in gateway.status(rollout_id)["error_message"]


async def test_two_workers_never_play_the_same_rollout(
    gateway: GatewayApi, settings: WorkerSettings, generator: FakeGenerator
) -> None:
    rollouts = gateway.enqueue(*map(task, range(24)))
    few = settings.model_copy(update={"concurrency": 3})
    await work(gateway, rollouts, Worker(few, 0), Worker(few, 1))
    assert gateway.states(rollouts) == {"succeeded"}
    assert all(len(gateway.detail(rollout_id)["attempts"]) == 1 for rollout_id in rollouts)
    assert len(generator.calls) == 24
    workers = {record.attempt_id.rpartition("-")[0] for record in records(settings).values()}
    assert workers == {f"{settings.pool_id}-0", f"{settings.pool_id}-1"}


async def test_a_worker_adopts_its_own_rollouts_and_no_others(gateway: GatewayApi, settings: WorkerSettings) -> None:
    rollouts = gateway.enqueue(task("own"), task("longer id"), task("other"))
    owners = [f"{settings.pool_id}-1-aaaa", f"{settings.pool_id}-1-0-aaaa", "other-1-aaaa"]
    for rollout_id, attempt_id in zip(rollouts, owners, strict=True):
        status = {"state": "running", "last_attempt_id": attempt_id}
        gateway.http.patch(f"/api/rollouts/{rollout_id}", json={"status": status}).raise_for_status()
    await work(gateway, rollouts[:1], Worker(settings, 1))
    assert gateway.rewards(rollouts[0]) == [1.0]
    assert [gateway.status(rollout_id)["last_attempt_id"] for rollout_id in rollouts[1:]] == owners[1:]
    for rollout_id in rollouts[1:]:
        gateway.http.patch(f"/api/rollouts/{rollout_id}", json={"status": {"state": "failed"}}).raise_for_status()


async def test_a_success_counts_for_the_attempt_that_earned_it(gateway: GatewayApi, settings: WorkerSettings) -> None:
    [rollout_id] = gateway.enqueue(task(1))
    worker = Worker(settings, 0)
    [(claimed, _)] = await worker._claim(1)
    await worker._gateway.new_attempt(rollout_id, "somebody-else")
    await worker._gateway.succeed(rollout_id, "mine", 0.5)
    assert claimed.rollout_id == rollout_id
    assert gateway.rewards(rollout_id) == [0.5]


async def test_a_rollout_that_the_trainer_deleted_is_forgotten(
    gateway: GatewayApi, settings: WorkerSettings, generator: FakeGenerator
) -> None:
    generator.failures = DOWN
    worker = Worker(settings, 0)
    running = asyncio.create_task(worker.run())
    [gone] = gateway.enqueue(task("gone"))
    async with asyncio.timeout(20):
        while not generator.calls:
            await asyncio.sleep(0.02)
    gateway.http.delete(f"/api/rollouts/{gone}").raise_for_status()
    generator.failures = 0
    [next_one] = gateway.enqueue(task("next"))
    async with asyncio.timeout(20):
        while gateway.states([next_one]) != {"succeeded"}:
            assert not running.done()
            await asyncio.sleep(0.02)
    worker.stop()
    await running


class Pool:
    """A worker pool in a process of its own."""

    def __init__(self, settings: WorkerSettings, *, processes: int) -> None:
        command = [sys.executable, "-c", POOL, settings.model_dump_json(), str(processes)]
        self.process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)

    def workers(self) -> list[psutil.Process]:
        """The worker processes: children of the pool's fork server."""
        with suppress(psutil.NoSuchProcess):
            return [each for child in psutil.Process(self.process.pid).children() for each in child.children()]
        return []


@contextmanager
def started(settings: WorkerSettings, *, processes: int) -> Iterator[Pool]:
    pool = Pool(settings, processes=processes)
    try:
        yield pool
    finally:
        with suppress(ProcessLookupError):
            os.killpg(pool.process.pid, signal.SIGKILL)
        pool.process.wait()


def gone(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


def test_a_killed_worker_is_started_again_and_its_rollouts_end(
    gateway: GatewayApi, settings: WorkerSettings, generator: FakeGenerator
) -> None:
    generator.failures = DOWN
    rollouts = gateway.enqueue(*map(task, range(6)))
    with started(settings.model_copy(update={"concurrency": 3}), processes=2) as pool:
        until(lambda: gateway.states(rollouts) == {"running"} and generator.calls)
        victim = pool.workers()[0]
        victim.kill()
        until(lambda: len(alive := [each for each in pool.workers() if not gone(each)]) == 2 and victim not in alive)
        generator.failures = 0
        until(lambda: gateway.states(rollouts) == {"succeeded"})
        assert [gateway.rewards(rollout_id) for rollout_id in rollouts] == [[1.0]] * 6
        pool.workers()[0].kill()
        time.sleep(0.6)  # SIGTERM comes while the worker is about to be started again
        pool.process.terminate()
        assert pool.process.wait(timeout=20) == 0
    assert len(records(settings)) == 6


def test_a_killed_pool_takes_its_workers_along_and_the_next_one_adopts(
    gateway: GatewayApi, settings: WorkerSettings, generator: FakeGenerator
) -> None:
    generator.failures = DOWN
    rollouts = gateway.enqueue(*map(task, range(3)))
    with started(settings, processes=1) as pool:
        until(lambda: gateway.states(rollouts) == {"running"} and generator.calls)
        workers = pool.workers()
        pool.process.kill()
        until(lambda: all(map(gone, workers)), within_s=5.0)
    generator.failures = 0
    with started(settings, processes=1) as pool:
        until(lambda: gateway.states(rollouts) == {"succeeded"})
        pool.process.terminate()
        assert pool.process.wait(timeout=20) == 0
    assert [gateway.rewards(rollout_id) for rollout_id in rollouts] == [[1.0]] * 3


def test_a_lost_gateway_ends_the_pool_with_its_exit_code(settings: WorkerSettings) -> None:
    app, asked = FastAPI(), []

    @app.get("/api/rollouts")
    def none_queued() -> list[Any]:
        asked.append(1)
        return []

    with serve(app) as url:
        lost = settings.model_copy(update={"gateway_url": url, "gateway_patience_s": 0.5})
        pool = Pool(lost, processes=1)
        until(lambda: asked)
    try:
        assert pool.process.wait(timeout=20) == GATEWAY_LOST
    finally:
        pool.process.kill()
