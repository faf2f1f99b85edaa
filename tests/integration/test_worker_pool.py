"""The pool against the real gateway over real HTTP; the services are fakes (docs/promises.md, 1 to 3)."""

import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from fastapi import FastAPI, Request, Response

from benchmarks.real_gateway import GatewayApi, real_gateway
from s3_agent.cli.rollout import pool_files, show_rollout
from s3_agent.clients.tokenizer import load_tokenizer
from s3_agent.data.files.appended import AppendedLines
from s3_agent.embedded import NANO_POLICY
from s3_agent.errors import ConfigError, DataError, GatewayError
from s3_agent.rollout.failure_policy import FailurePolicy
from s3_agent.rollout.pool.pool import GATEWAY_LOST, only_pool_of
from s3_agent.rollout.pool.recorded import SAME_PROMPT
from s3_agent.rollout.pool.settings import PoolSettings
from s3_agent.rollout.story import Story
from s3_agent.rollout.worker.native import WorkerSettings
from s3_agent.testing.fakes import FakeGenerator
from s3_agent.testing.servers import generator_app, serve
from tests.agents.native import ODD_ENDS, ODD_RESULTS
from tests.full_disk import cut_short, small_disk
from tests.pool_harness import (
    NORWAY,
    QUICK,
    SPAIN,
    Pool,
    gone,
    make_supervisor,
    pool_settings,
    reader,
    records,
    started,
    task,
    until,
    work,
    worker_settings,
)

DOWN = 1_000_000


def story(settings: PoolSettings, rollout_id: str) -> Story:
    folder = Path(settings.pool_log or "").parent
    return pool_files(str(folder), runs=folder).story(rollout_id)


def events(settings: PoolSettings, rollout_id: str) -> list[str]:
    """The names of a rollout's events, from a file that may still be written."""
    if not Path(settings.pool_log or "").exists():
        return []
    return [event.event for event in story(settings, rollout_id).events]


@pytest.fixture
def settings(gateway: GatewayApi, tmp_path: Path, request: pytest.FixtureRequest) -> PoolSettings:
    return pool_settings(gateway, tmp_path, request.node.name)


async def test_every_rollout_ends_with_one_reward_event(
    gateway: GatewayApi, settings: PoolSettings, worker: WorkerSettings
) -> None:
    good = gateway.enqueue(*map(task, range(4)))
    [wrong] = gateway.enqueue({**task("wrong"), "golden_answers": ["Dirham"]})
    await work(gateway, [*good, wrong], make_supervisor(settings, worker))
    assert gateway.states([*good, wrong]) == {"succeeded"}
    assert [gateway.rewards(rollout_id) for rollout_id in good] == [[1.0]] * 4
    assert gateway.rewards(wrong) == [0.0]
    record = records(settings)[good[0]]
    assert (record.state, record.attempts, record.reward, record.gbr) == ("succeeded", 1, 1.0, 1.0)
    assert record.attempt_id == gateway.status(good[0])["last_attempt_id"]
    assert record.episode is not None and record.episode.selected == (NORWAY, SPAIN)
    assert record.task is not None and record.task.id == "t0"
    assert record.worker == "worker-0" and record.failures == []
    assert set(record.timings) == {"queued_s", "search_s", "answer_s", "report_s", "total_s"}


async def test_a_disk_that_is_full_for_a_while_loses_no_episode(
    gateway: GatewayApi, settings: PoolSettings, worker: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first episodes find a full disk; room is made while the pool works."""
    whole, full = AppendedLines.write, 3

    def write(lines: AppendedLines, line: bytes) -> int:
        nonlocal full
        if full:
            full -= 1
            with monkeypatch.context() as disk:
                cut_short(disk, after=40)
                return whole(lines, line)
        return whole(lines, line)

    monkeypatch.setattr(AppendedLines, "write", write)
    ids = gateway.enqueue(*map(task, range(6)))
    await work(gateway, ids, make_supervisor(settings, worker))
    assert gateway.states(ids) == {"succeeded"}
    assert [gateway.rewards(rollout_id) for rollout_id in ids] == [[1.0]] * 6
    assert records(settings).keys() == set(ids) and full == 0


async def test_a_pool_whose_disk_stays_full_says_so_at_its_end(
    gateway: GatewayApi, settings: PoolSettings, worker: WorkerSettings, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", size="4k") as disk:
        full = settings.model_copy(update={"episodes": str(disk / "episodes.jsonl")})
        ids = gateway.enqueue(*map(task, range(4)))
        with pytest.raises(DataError, match=r"episodes\.jsonl can not be written: No space left"):
            await work(gateway, ids, make_supervisor(full, worker))
        assert gateway.states(ids) == {"succeeded"}
        kept = records(full)  # every line is whole
        assert len(kept) < 4
        with (disk / "episodes.jsonl").open("rb") as file:
            assert file.read()[-1:] in (b"\n", b"")


async def test_the_rollout_says_which_of_our_agents_plays(
    gateway: GatewayApi, settings: PoolSettings, worker: WorkerSettings
) -> None:
    entry = "s3_agent.agl.entry:"
    played = {name: gateway.enqueue(task(name), agent_class=entry + name)[0] for name in ("S3Agent", "SearchR1Agent")}
    await work(gateway, [*played.values()], make_supervisor(settings, worker))
    s3, search_r1 = (records(settings)[rollout_id] for rollout_id in played.values())
    assert s3.episode is not None and search_r1.episode is not None
    assert (s3.episode.agent, s3.reward) == ("s3", 1.0)
    assert (search_r1.episode.agent, search_r1.reward) == ("search_r1", 0.0), "the fake policy writes s3's tags alone"
    assert search_r1.episode.initial_passages == ()


async def test_a_generator_that_recovers_gets_a_new_attempt(
    gateway: GatewayApi, settings: PoolSettings, worker: WorkerSettings, generator: FakeGenerator
) -> None:
    generator.failures = 3
    [rollout_id] = gateway.enqueue(task(1))
    await work(gateway, [rollout_id], make_supervisor(settings, worker))
    attempts = gateway.detail(rollout_id)["attempts"]
    assert len(attempts) >= 2
    assert gateway.status(rollout_id)["last_attempt_id"] == attempts[-1]
    assert gateway.rewards(rollout_id) == [1.0]
    kinds = [event["event_type"] for event in gateway.events(rollout_id)]
    assert kinds == ["model_request", "model_request", "reward"], "an attempt starts from nothing"
    record = records(settings)[rollout_id]
    assert record.attempts == len(attempts)
    assert [failure.attempt_id for failure in record.failures] == attempts[:-1]
    assert {failure.boundary for failure in record.failures} == {"generator"}


async def test_no_rollout_gets_a_reward_from_a_generator_that_was_killed(
    gateway: GatewayApi, settings: PoolSettings, retriever_url: str
) -> None:
    with ExitStack() as running:
        url = running.enter_context(serve(generator_app(FakeGenerator(reader))))
        worker = worker_settings(retriever_url, url, concurrency=1)
        rollout_ids = gateway.enqueue(*map(task, range(3)), timeout_s=3)
        working = asyncio.create_task(work(gateway, rollout_ids, make_supervisor(settings, worker)))
        while "succeeded" not in gateway.states(rollout_ids):
            await asyncio.sleep(0.01)
        running.close()
        await working
    states = {rollout_id: gateway.status(rollout_id) for rollout_id in rollout_ids}
    failed = [rollout_id for rollout_id, status in states.items() if status["state"] == "failed"]
    assert 0 < len(failed) < len(rollout_ids)
    for rollout_id in rollout_ids:
        assert gateway.rewards(rollout_id) == ([] if rollout_id in failed else [1.0])
    for rollout_id in failed:
        assert gateway.events(rollout_id) == [], "what the policy said before it is not trained either"
        assert "generator" in states[rollout_id]["error_message"]
        assert f"{url}/v1/chat/completions" in states[rollout_id]["error_message"]


async def test_the_trainer_gets_one_row_for_each_success_and_none_for_a_failure(
    gateway: GatewayApi, settings: PoolSettings, worker: WorkerSettings
) -> None:
    good = gateway.enqueue(*map(task, range(3)))
    [failed] = gateway.enqueue(task("down", question="unanswerable?"), timeout_s=2)
    await work(gateway, [*good, failed], make_supervisor(settings, worker))
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

    manager = AglRolloutManagerBase(agl_base_url=gateway.url, agl_key="real-gateway", model="", step=0)
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
    gateway: GatewayApi, settings: PoolSettings, worker: WorkerSettings, row: Any, named: str
) -> None:
    bad, good, again = gateway.enqueue(row, task(1), task(1))
    await work(gateway, [bad, good, again], make_supervisor(settings, worker))
    status = gateway.status(bad)
    assert status["state"] == "failed"
    assert "not a task row" in status["error_message"] and named in status["error_message"]
    assert gateway.events(bad) == []
    assert gateway.rewards(good) == gateway.rewards(again) == [1.0], "the same task twice is two rollouts"
    assert records(settings)[bad].attempts == 1


async def test_a_refused_request_is_not_tried_again(
    gateway: GatewayApi, settings: PoolSettings, worker: WorkerSettings
) -> None:
    refusing = worker.model_copy(update={"generator_url": f"{worker.generator_url}/nowhere"})
    [rollout_id] = gateway.enqueue(task(1))
    await work(gateway, [rollout_id], make_supervisor(settings, refusing))
    assert "generator" in gateway.status(rollout_id)["error_message"]
    assert "404" in gateway.status(rollout_id)["error_message"]
    assert records(settings)[rollout_id].attempts == 1
    assert gateway.events(rollout_id) == []


async def test_most_attempts_ends_the_trying(
    gateway: GatewayApi, settings: PoolSettings, worker: WorkerSettings
) -> None:
    few = settings.model_copy(update={"failure_policy": QUICK.model_copy(update={"most_attempts": 2})})
    [rollout_id] = gateway.enqueue(task("down", question="unanswerable?"))
    await work(gateway, [rollout_id], make_supervisor(few, worker))
    assert records(settings)[rollout_id].attempts == 2
    assert gateway.status(rollout_id)["error_message"].startswith("attempt 2: generator: ")


async def test_two_pools_never_play_the_same_rollout(
    gateway: GatewayApi, settings: PoolSettings, worker: WorkerSettings, generator: FakeGenerator
) -> None:
    rollouts = gateway.enqueue(*map(task, range(24)))
    few = worker.model_copy(update={"concurrency": 3})
    pools = [settings.model_copy(update={"pool_id": name}) for name in ("one", "two")]
    await work(gateway, rollouts, *(make_supervisor(pool, few) for pool in pools))
    assert gateway.states(rollouts) == {"succeeded"}
    assert all(len(gateway.detail(rollout_id)["attempts"]) == 1 for rollout_id in rollouts)
    assert len(generator.calls) == 24
    assert {record.attempt_id.rpartition("-")[0] for record in records(settings).values()} == {"one", "two"}


async def test_a_pool_adopts_its_own_rollouts_and_no_others(
    gateway: GatewayApi, settings: PoolSettings, worker: WorkerSettings
) -> None:
    rollouts = gateway.enqueue(task("own"), task("longer id"), task("other"))
    owners = [f"{settings.pool_id}-aaaa", f"{settings.pool_id}-0-aaaa", "other-aaaa"]
    for rollout_id, attempt_id in zip(rollouts, owners, strict=True):
        status = {"state": "running", "last_attempt_id": attempt_id}
        gateway.http.patch(f"/api/rollouts/{rollout_id}", json={"status": status}).raise_for_status()
    await work(gateway, rollouts[:1], make_supervisor(settings, worker))
    assert gateway.rewards(rollouts[0]) == [1.0]
    assert [gateway.status(rollout_id)["last_attempt_id"] for rollout_id in rollouts[1:]] == owners[1:]
    for rollout_id in rollouts[1:]:
        gateway.http.patch(f"/api/rollouts/{rollout_id}", json={"status": {"state": "failed"}}).raise_for_status()


async def test_a_rollout_that_the_trainer_deleted_is_written_down_as_that(
    gateway: GatewayApi, settings: PoolSettings, worker: WorkerSettings, generator: FakeGenerator
) -> None:
    generator.failures = DOWN
    supervisor = make_supervisor(settings, worker)
    running = asyncio.create_task(supervisor.run())
    [deleted] = gateway.enqueue(task("deleted"))
    async with asyncio.timeout(20):
        while not generator.calls:
            await asyncio.sleep(0.02)
    gateway.delete([deleted])
    async with asyncio.timeout(20):
        while "ended" not in events(settings, deleted):
            await asyncio.sleep(0.02)
    generator.failures = 0
    [next_one] = gateway.enqueue(task("next"))
    async with asyncio.timeout(20):
        while gateway.states([next_one]) != {"succeeded"}:
            assert not running.done()
            await asyncio.sleep(0.02)
    supervisor.stop()
    await running
    found = records(settings)
    assert set(found) == {deleted, next_one}
    gone = found[deleted]
    assert (gone.state, gone.reported, gone.reward) == ("failed", False, None)
    assert "the trainer has deleted it" in (gone.error or "")
    assert "generator" in {failure.boundary for failure in gone.failures}
    assert story(settings, deleted).ending == "failed" and events(settings, deleted)[-1] == "ended"


@contextmanager
def unreliable(gateway: GatewayApi, lost: list[str], *, do_first: Any = None) -> Iterator[str]:
    """A way to the gateway on which the first answer to each of the `lost` requests gets lost."""
    app = FastAPI()
    left = list(lost)

    @app.api_route("/{path:path}", methods=["GET", "POST", "PATCH"])
    async def forward(path: str, request: Request) -> Response:
        body = await request.body()
        key = next((mark for mark in left if mark in f"{request.method} {path} {body.decode()}"), None)
        if key and do_first:
            do_first(path)
        async with httpx.AsyncClient() as client:
            answer = await client.request(
                request.method,
                f"{gateway.url}/{path}?{request.url.query}",
                content=body,
                headers={"Authorization": request.headers["authorization"], "Content-Type": "application/json"},
            )
        if key:
            left.remove(key)
            if not do_first:
                return Response(status_code=502)
        return Response(answer.content, status_code=answer.status_code, media_type="application/json")

    with serve(app) as url:
        yield url


@pytest.mark.parametrize("lost", ['"state": "running"', '"state": "succeeded"', '"event_type": "reward"'])
async def test_a_lost_answer_loses_no_rollout_and_no_line(
    gateway: GatewayApi, settings: PoolSettings, worker: WorkerSettings, lost: str
) -> None:
    [rollout_id] = gateway.enqueue(task(1))
    with unreliable(gateway, [lost]) as url:
        await work(gateway, [rollout_id], make_supervisor(settings.model_copy(update={"gateway_url": url}), worker))
    assert set(gateway.rewards(rollout_id)) == {1.0}
    record = records(settings)[rollout_id]
    assert (record.state, record.reported, record.attempts) == ("succeeded", True, 1)


async def test_a_policy_call_whose_answer_was_lost_makes_no_second_row(
    gateway: GatewayApi, settings: PoolSettings, worker: WorkerSettings
) -> None:
    [rollout_id] = gateway.enqueue(task(1))
    with unreliable(gateway, ["v1/completions"]) as url:
        through = settings.model_copy(update={"gateway_url": url})
        await work(gateway, [rollout_id], make_supervisor(through, worker))
    record = records(settings)[rollout_id]
    assert (record.state, record.attempts) == ("succeeded", 2)
    assert [failure.boundary for failure in record.failures] == ["policy"]
    kinds = [event["event_type"] for event in gateway.events(rollout_id)]
    assert kinds == ["model_request", "model_request", "reward"], "the agent has seen every call of its attempt"


async def test_a_rollout_that_somebody_else_ended_is_written_down_as_that(
    gateway: GatewayApi, settings: PoolSettings, worker: WorkerSettings
) -> None:
    [rollout_id] = gateway.enqueue(task(1))

    def end(_: str) -> None:
        status = {"state": "failed", "last_attempt_id": "stranger"}
        gateway.http.patch(f"/api/rollouts/{rollout_id}", json={"status": status}).raise_for_status()

    with unreliable(gateway, ['"state": "succeeded"'], do_first=end) as url:
        supervisor = make_supervisor(settings.model_copy(update={"gateway_url": url}), worker)
        running = asyncio.create_task(supervisor.run())
        async with asyncio.timeout(20):
            while not Path(settings.episodes or "").exists() or not records(settings):
                await asyncio.sleep(0.05)
        supervisor.stop()
        await running
    record = records(settings)[rollout_id]
    assert (record.state, record.reported, record.error) == (
        "succeeded",
        False,
        "another process had already ended the rollout",
    )
    assert story(settings, rollout_id).events[-1].reported is False
    assert gateway.status(rollout_id)["last_attempt_id"] == "stranger"
    assert gateway.events(rollout_id) == []


async def test_a_stopped_pool_fails_what_it_can_not_finish_without_events(
    gateway: GatewayApi, settings: PoolSettings, worker: WorkerSettings, generator: FakeGenerator
) -> None:
    generator.failures = DOWN
    rollouts = gateway.enqueue(*map(task, range(3)))
    supervisor = make_supervisor(settings.model_copy(update={"drain_s": 0.3}), worker)
    running = asyncio.create_task(supervisor.run())
    async with asyncio.timeout(20):
        while not generator.calls or gateway.states(rollouts) != {"running"}:
            await asyncio.sleep(0.02)
    [later] = gateway.enqueue(task("later"))
    supervisor.stop()
    await asyncio.wait_for(running, 20)
    assert gateway.states(rollouts) == {"failed"}
    assert all(gateway.events(rollout_id) == [] for rollout_id in rollouts)
    assert "the pool was stopped" in gateway.status(rollouts[0])["error_message"]
    assert {(record.state, record.boundary) for record in records(settings).values()} == {("failed", "stopped")}
    if gateway.status(later)["state"] == "queuing":
        gateway.delete([later])


@pytest.mark.parametrize(("gateway_stops_first", "drain_s"), [(False, 0.2), (True, 0.2), (True, 20.0)])
async def test_an_attempt_that_a_stop_cancels_is_in_the_record(
    gateway: GatewayApi,
    settings: PoolSettings,
    worker: WorkerSettings,
    tmp_path: Path,
    gateway_stops_first: bool,
    drain_s: float,
) -> None:
    """Also when the pool learns that the gateway is gone while it still waits for its rollouts."""
    waiting = worker.model_copy(update={"native_agents": ("tests.agents.native:EndsOddly",)})
    [rollout_id] = gateway.enqueue({"until": str(tmp_path / "never")}, agent_class="tests.agents.native:EndsOddly")
    with ExitStack() as between:
        url = between.enter_context(unreliable(gateway, []))
        through = settings.model_copy(update={"drain_s": drain_s, "gateway_url": url, "gateway_patience_s": 1.0})
        supervisor = make_supervisor(through, waiting)
        running = asyncio.create_task(supervisor.run())
        async with asyncio.timeout(20):
            while "attempt_started" not in events(settings, rollout_id):
                await asyncio.sleep(0.02)
        if gateway_stops_first:
            between.close()
        supervisor.stop()
        with suppress(GatewayError):
            await asyncio.wait_for(running, 20)
    record = records(settings)[rollout_id]
    assert (record.state, record.boundary, record.reported) == ("failed", "stopped", not gateway_stops_first)
    [cancelled] = record.failures
    assert (cancelled.boundary, cancelled.worker) == ("cancelled", "worker-0") and cancelled.seconds > 0
    claimed, started, failed, ended = story(settings, rollout_id).events
    assert (claimed.event, started.event, ended.event) == ("claimed", "attempt_started", "ended")
    assert (failed.event, failed.attempt_id) == ("attempt_failed", cancelled.attempt_id)
    assert claimed.attempt_id == started.attempt_id == cancelled.attempt_id
    assert (failed.boundary, failed.worker, failed.seconds) == ("cancelled", "worker-0", cancelled.seconds)
    assert (ended.state, ended.boundary, ended.reported) == ("failed", "stopped", not gateway_stops_first)


async def test_one_command_tells_the_story_of_a_rollout(
    gateway: GatewayApi,
    settings: PoolSettings,
    worker: WorkerSettings,
    generator: FakeGenerator,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    generator.failures = 3
    [retried] = gateway.enqueue(task("retried"))
    await work(gateway, [retried], make_supervisor(settings, worker))
    [good] = gateway.enqueue(task("good"))
    await work(gateway, [good], make_supervisor(settings, worker))
    attempts = gateway.detail(retried)["attempts"]
    told = events(settings, retried)
    assert told[0] == "claimed" and told[-1] == "ended"
    assert told.count("attempt_started") == told.count("attempt_failed") + 1 == len(attempts)
    failed = [event for event in story(settings, retried).events if event.event == "attempt_failed"]
    assert [event.attempt_id for event in failed] == attempts[:-1]
    assert {(event.boundary, event.worker) for event in failed} == {("generator", "worker-0")}
    assert all(event.seconds and "status 500" in (event.message or "") for event in failed)

    show_rollout(tmp_path.name, retried[:10], runs=tmp_path.parent)
    shown = " ".join(capsys.readouterr().out.split())
    for part in (
        *(f"rollout {retried}", f"claimed by pool {settings.pool_id}", "attempt 1 failed on worker-0", "at generator:"),
        *("task tretried: What is the currency of Norway?", "golden answers: Krone", "turn 1: search", NORWAY.text),
        *("selected (finished)", "It is the Krone.", "reward 1.000, accuracy 1.000", "succeeded with reward 1.000"),
    ):
        assert part in shown, part
    show_rollout(tmp_path.name, None, runs=tmp_path.parent)
    shown = capsys.readouterr().out
    assert "2 rollouts: 2 succeeded; 1 retried" in shown and retried[:12] in shown and good[:12] not in shown


def test_a_killed_worker_is_replaced_and_its_rollouts_end(
    gateway: GatewayApi, settings: PoolSettings, worker: WorkerSettings, generator: FakeGenerator
) -> None:
    generator.failures = DOWN
    rollouts = gateway.enqueue(*map(task, range(6)))
    two = settings.model_copy(update={"processes": 2})
    with started(two, worker.model_copy(update={"concurrency": 3})) as pool:
        until(lambda: gateway.states(rollouts) == {"running"} and generator.calls)
        victim = pool.workers()[0]
        victim.kill()
        until(lambda: len(alive := pool.workers()) == 2 and victim not in alive)
        generator.failures = 0
        until(lambda: gateway.states(rollouts) == {"succeeded"})
        assert [gateway.rewards(rollout_id) for rollout_id in rollouts] == [[1.0]] * 6
        for zygote in pool.zygotes():
            zygote.kill()
        for process in pool.workers():
            process.kill()
        more = gateway.enqueue(*map(task, range(6)))
        until(lambda: gateway.states(more) == {"succeeded"})
        assert pool.stop() == 0
    assert len(records(settings)) == 12


def test_a_killed_pool_takes_its_workers_along_and_the_next_one_adopts(
    gateway: GatewayApi, settings: PoolSettings, worker: WorkerSettings, generator: FakeGenerator
) -> None:
    generator.failures = DOWN
    rollouts = gateway.enqueue(*map(task, range(3)))
    with started(settings, worker) as pool:
        until(lambda: gateway.states(rollouts) == {"running"} and generator.calls)
        with pytest.raises(ConfigError, match="works for"), only_pool_of(settings.pool_id, gateway.url):
            pass
        family = pool.family()
        pool.process.kill()
        until(lambda: all(map(gone, family)), within_s=5.0)
    generator.failures = 0
    with started(settings, worker) as pool:
        until(lambda: gateway.states(rollouts) == {"succeeded"})
        assert pool.stop() == 0
    assert [gateway.rewards(rollout_id) for rollout_id in rollouts] == [[1.0]] * 3
    for rollout_id in rollouts:
        told = events(settings, rollout_id)
        assert told[0] == "claimed" and "ended" not in told[: told.index("adopted")] and told[-1] == "ended"
        assert "pool_started" in told[: told.index("adopted")]
        assert story(settings, rollout_id).ending == "succeeded"


def test_a_hung_worker_is_killed_and_its_rollout_tried_again(
    gateway: GatewayApi, settings: PoolSettings, worker: WorkerSettings, tmp_path: Path
) -> None:
    policy = FailurePolicy(first_wait_s=0.05, attempt_timeout_s=0.5)
    hanging = worker.model_copy(update={"native_agents": ("tests.agents.native:HangsOnce",), "concurrency": 2})
    two = settings.model_copy(update={"processes": 2, "failure_policy": policy})
    [rollout_id] = gateway.enqueue({"mark": str(tmp_path / "hung")}, agent_class="tests.agents.native:HangsOnce")
    with started(two, hanging) as pool:
        until(lambda: gateway.states([rollout_id]) == {"succeeded"})
        assert pool.stop() == 0
    record = records(settings)[rollout_id]
    assert [failure.boundary for failure in record.failures] == ["timeout"]
    assert record.worker != record.failures[0].worker, "on another worker"
    assert gateway.rewards(rollout_id) == [0.25]


def test_a_native_agent_that_raises_is_tried_again(
    gateway: GatewayApi, settings: PoolSettings, worker: WorkerSettings, tmp_path: Path
) -> None:
    raising = worker.model_copy(update={"native_agents": ("tests.agents.native:RaisesOnce",)})
    [rollout_id] = gateway.enqueue({"mark": str(tmp_path / "raised")}, agent_class="tests.agents.native.RaisesOnce")
    with started(settings, raising) as pool:
        until(lambda: gateway.states([rollout_id]) == {"succeeded"})
        assert pool.stop() == 0
    [failure] = records(settings)[rollout_id].failures
    assert (failure.boundary, failure.message) == ("agent", "RuntimeError: once")
    assert gateway.rewards(rollout_id) == [0.5]


def test_a_native_agents_answers_that_no_row_trains_are_counted(
    gateway: GatewayApi, settings: PoolSettings, worker: WorkerSettings, tmp_path: Path
) -> None:
    agent = "tests.agents.native:AsksTwice"
    asking = worker.model_copy(update={"native_agents": (agent,)})
    mine, none, own = (
        gateway.enqueue({"metrics": {"mine": 7.0}}, agent_class=agent)[0],
        gateway.enqueue({"metrics": {}}, agent_class=agent)[0],
        gateway.enqueue(task(1))[0],
    )
    with started(settings, asking, log=tmp_path / "log") as pool:
        until(lambda: gateway.states([mine, none, own]) == {"succeeded"})
        assert pool.stop() == 0
    ended = records(settings)
    assert ended[mine].metrics == {"mine": 7.0, "answers_untrained": 1.0}
    assert ended[none].metrics == {"answers_untrained": 1.0}
    assert "answers_untrained" not in ended[own].metrics
    assert (tmp_path / "log").read_text().count(SAME_PROMPT) == 1


def test_whatever_an_agent_returns_or_raises_ends_its_attempt_alone(
    gateway: GatewayApi, settings: PoolSettings, worker: WorkerSettings, tmp_path: Path
) -> None:
    agent, gate = "tests.agents.native:EndsOddly", tmp_path / "gate"
    odd = {
        name: gateway.enqueue({"odd": name, "mark": str(tmp_path / name)}, agent_class=agent)[0]
        for name in (*ODD_RESULTS, *ODD_ENDS)
    }
    [neighbour] = gateway.enqueue({"until": str(gate)}, agent_class=agent)
    own = worker.model_copy(update={"native_agents": (agent,), "concurrency": len(odd) + 1})
    with started(settings, own) as pool:
        until(lambda: gateway.states([*odd.values()]) <= {"succeeded", "failed"})
        gate.touch()
        until(lambda: gateway.states([neighbour]) <= {"succeeded", "failed"})
        assert pool.stop() == 0
    ended = records(settings)
    assert (ended[neighbour].attempts, ended[neighbour].reward, ended[neighbour].failures) == (1, 1.0, [])
    for name, rollout_id in odd.items():
        assert gateway.rewards(rollout_id) == [0.5], name
        [failure] = ended[rollout_id].failures
        unrewarded = name in ("None", "nan", "infinite", "too large", "numpy", "text")
        assert failure.boundary == ("reward" if unrewarded else "agent"), name
        assert failure.message


def test_settings_that_no_worker_could_use_end_the_pool_with_the_reason(
    settings: PoolSettings, worker: WorkerSettings, capfd: pytest.CaptureFixture[str]
) -> None:
    pool = Pool(settings, worker.model_copy(update={"policy_tokenizer": "/nowhere"}), environment={})
    assert pool.process.wait(timeout=30) == 2


def test_a_lost_gateway_ends_the_pool_with_its_exit_code(
    settings: PoolSettings, worker: WorkerSettings, tmp_path: Path
) -> None:
    with real_gateway(tmp_path) as own:
        lost = settings.model_copy(update={"gateway_url": own.url, "gateway_patience_s": 0.5})
        with started(lost, worker) as pool:
            until(pool.workers)
            family = pool.family()
            own.process.send_signal(signal.SIGKILL)
            assert pool.process.wait(timeout=20) == GATEWAY_LOST
            until(lambda: all(map(gone, family)), within_s=5.0)


def test_a_gateway_that_was_started_again_ends_the_pool(settings: PoolSettings, worker: WorkerSettings) -> None:
    """Its store is in memory: what it says has ended can only grow."""
    app, counts = FastAPI(), iter([5, 5])

    @app.get("/api/rollouts/terminal")
    def terminal() -> dict[str, int]:
        return {"total_terminal": next(counts, 0)}

    @app.get("/api/rollouts")
    def none_queued() -> list[Any]:
        return []

    with serve(app) as url:
        pool = Pool(settings.model_copy(update={"gateway_url": url}), worker, environment={})
        try:
            assert pool.process.wait(timeout=30) == GATEWAY_LOST
        finally:
            pool.process.kill()


def test_a_paused_gateway_is_waited_out(gateway: GatewayApi, settings: PoolSettings, worker: WorkerSettings) -> None:
    gateway.http.post("/proxy/pause", json={"retry_after_seconds": 1}).raise_for_status()
    try:
        rollouts = gateway.enqueue(*map(task, range(2)))
        with started(settings, worker) as pool:
            until(lambda: gateway.states(rollouts) == {"running"})
            time.sleep(0.5)
            assert gateway.states(rollouts) == {"running"}
            gateway.http.post("/proxy/resume").raise_for_status()
            until(lambda: gateway.states(rollouts) == {"succeeded"})
            assert pool.stop() == 0
    finally:
        gateway.http.post("/proxy/resume").raise_for_status()
    assert all(record.attempts == 1 for record in records(settings).values()), "a pause is no failure"


def test_nothing_listens(gateway: GatewayApi, settings: PoolSettings, worker: WorkerSettings) -> None:
    with started(settings, worker) as pool:
        until(pool.workers)
        for process in [psutil.Process(pool.process.pid), *pool.family()]:
            assert [each for each in process.net_connections() if each.status == psutil.CONN_LISTEN] == []
        assert pool.stop() == 0
