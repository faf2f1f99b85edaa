"""Everything fails while a pool works: every rollout still ends, with one true reward, and nothing is left.

The gateway is the real one; policy, retriever and generator are the shipped fakes over real HTTP, made unreliable.
"""

import asyncio
import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from fastapi import FastAPI, Request, Response

from benchmarks.real_gateway import GatewayApi, real_gateway
from s3_agent.clients.tokenizer import load_tokenizer
from s3_agent.embedded import NANO_POLICY
from s3_agent.rollout.failure_policy import FailurePolicy
from s3_agent.rollout.pool.settings import PoolSettings
from s3_agent.testing.fakes import FakeGenerator, FakePolicy, FakeRetriever
from s3_agent.testing.servers import generator_app, policy_app, retriever_app, serve
from tests.pool_harness import (
    NORWAY,
    SPAIN,
    Pool,
    gone,
    pool_settings,
    reader,
    records,
    searcher,
    started,
    task,
    until,
    worker_settings,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

NATIVE = "tests.agents.native:OneAtATime"
PLAIN = "tests.agents.plain:AsksThePolicy"
HANG_S = 20.0
POLICY = FailurePolicy(first_wait_s=0.1, longest_wait_s=1.0, attempt_timeout_s=12.0)


def unreliable_policy(policy: FakePolicy, chance: random.Random) -> FastAPI:
    """Of a hundred calls four are refused as too many, four fail, and one hangs; the others take their time."""
    app = policy_app(policy)

    @app.middleware("http")
    async def fail(request: Request, call_next: Any) -> Response:
        draw = chance.random()
        if draw < 0.04:
            return Response(status_code=429, headers={"Retry-After": "1"})
        if draw < 0.08:
            return Response(status_code=500)
        await asyncio.sleep(HANG_S if draw < 0.09 else 0.1)
        return await call_next(request)

    return app


class Restarted:
    """A server that can be stopped and started again at its port."""

    def __init__(self, app: FastAPI, stack: ExitStack) -> None:
        self._app, self._serving = app, ExitStack()
        self.url = self._serving.enter_context(serve(app))
        stack.callback(lambda: self._serving.close())

    def restart(self, down_s: float, ended: threading.Event) -> None:
        self._serving.close()
        ended.wait(down_s)
        self._serving = ExitStack()
        self._serving.enter_context(serve(self._app, port=int(self.url.rpartition(":")[2])))


class Stage:
    """The gateway and the services, and what goes wrong with them."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.chance = random.Random(7)
        policy = FakePolicy(searcher, load_tokenizer(str(NANO_POLICY)))
        policy_url = stack.enter_context(serve(unreliable_policy(policy, self.chance)))
        self.gateway = stack.enter_context(real_gateway(folder, model=str(NANO_POLICY), policy_url=policy_url))
        retriever = FakeRetriever({"currency of Norway": [NORWAY]}, default=[SPAIN])
        self.retriever = Restarted(retriever_app(retriever), stack)
        self.generator = Restarted(generator_app(FakeGenerator(reader)), stack)
        self.worker = worker_settings(self.retriever.url, self.generator.url, native_agents=(NATIVE,), concurrency=1)
        self.killed = self.filled = 0

    def kill_one(self, pools: list[Pool]) -> None:
        if workers := self.chance.choice(pools).workers():
            with suppress(psutil.NoSuchProcess):
                self.chance.choice(workers).kill()
                self.killed += 1

    def pause(self, ended: threading.Event) -> None:
        self.gateway.http.post("/proxy/pause", json={"retry_after_seconds": 1}).raise_for_status()
        ended.wait(2.0)
        self.gateway.http.post("/proxy/resume").raise_for_status()

    def fill_disk(self, pools: list[Pool], ended: threading.Event) -> None:
        """For two seconds no file of a pool's own process can grow, its log included."""
        processes = [psutil.Process(pool.process.pid) for pool in pools]
        for process in processes:
            process.rlimit(psutil.RLIMIT_FSIZE, (1, psutil.RLIM_INFINITY))
        ended.wait(2.0)
        for process in processes:
            process.rlimit(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
        self.filled += 1

    @contextmanager
    def faults(self, pools: list[Pool]) -> Iterator[None]:
        """While the block runs, workers are killed, the services go down one after the other, and the disk fills."""
        ended, errors = threading.Event(), []

        def watched(work: Any, every_s: float) -> threading.Thread:
            def repeat() -> None:
                try:
                    while not ended.wait(every_s):
                        work()
                except Exception as error:
                    errors.append(error)

            thread = threading.Thread(target=repeat)
            thread.start()
            return thread

        def services() -> None:
            self.retriever.restart(1.0, ended)
            ended.wait(2.0)
            self.pause(ended)
            ended.wait(2.0)
            self.generator.restart(1.0, ended)
            ended.wait(2.0)
            self.fill_disk(pools, ended)

        threads = [watched(lambda: self.kill_one(pools), 0.4), watched(services, 2.0)]
        try:
            yield
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        assert not errors


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with ExitStack() as stack:
        yield Stage(stack, tmp_path)


def enqueue(stage: Stage, count: int, folder: Path) -> list[str]:
    locks = folder / "locks"
    locks.mkdir()
    rows = [{**task(number), "locks": str(locks)} for number in range(count)]
    env_map = {"QUESTION": "input.question", "GOLD": "input.golden_answers"}
    native = stage.gateway.enqueue(*rows[: count * 4 // 5], timeout_s=200, agent_class=NATIVE)
    plain = stage.gateway.enqueue(*rows[count * 4 // 5 :], timeout_s=200, agent_class=PLAIN, env_map=env_map)
    return [*native, *plain]


def check_each(gateway: GatewayApi, rollout_ids: list[str], pools: list[PoolSettings]) -> None:
    """Every rollout has ended as one pool says, and only the attempt that counts has earned a reward."""
    said = [records(pool) for pool in pools]
    assert sum(map(len, said)) == len(rollout_ids), "one line for each rollout"
    for rollout_id in rollout_ids:
        detail, [record] = gateway.detail(rollout_id), [each[rollout_id] for each in said if rollout_id in each]
        status = detail["rollout"]["status"]
        assert status["state"] == record.state == "succeeded", record.error
        assert status["last_attempt_id"] == record.attempt_id
        assert gateway.rewards(rollout_id) == [1.0]
        assert {attempt.rpartition("-")[0] for attempt in detail["attempts"]} == {record.attempt_id.rpartition("-")[0]}
        answered = [event for event in gateway.events(rollout_id) if event["data"].get("status") == "ok"]
        assert len(answered) == (2 if record.agent_class == NATIVE else 1), "an attempt starts from nothing"
        for attempt_id in set(detail["attempts"]) - {record.attempt_id}:
            # The gateway shows events only of the last attempt; this rollout is ours to change now.
            patch = {"status": {"last_attempt_id": attempt_id}}
            gateway.http.patch(f"/api/rollouts/{rollout_id}", json=patch).raise_for_status()
            assert record.agent_class != NATIVE or gateway.rewards(rollout_id) == [], "no reward of a failed attempt"


@pytest.mark.parametrize("names", [["one"], ["left", "right"]], ids=["one pool", "two pools"])
def test_nothing_is_lost_rewarded_twice_or_left_behind(stage: Stage, tmp_path: Path, names: list[str]) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    pools = [
        pool_settings(
            stage.gateway,
            tmp_path,
            name,
            processes=32 // len(names),
            failure_policy=POLICY,
            gateway_patience_s=30.0,
            episodes=str(tmp_path / f"{name}.jsonl"),
        )
        for name in names
    ]
    rollouts = enqueue(stage, 300, tmp_path)
    with ExitStack() as stack:
        running = [
            stack.enter_context(started(pool, stage.worker, log=tmp_path / f"{pool.pool_id}.log", TMPDIR=str(scratch)))
            for pool in pools
        ]
        until(lambda: all(len(pool.workers()) >= 16 for pool in running))
        family = [process for pool in running for process in pool.family()]
        with stage.faults(running):
            until(lambda: stage.gateway.ended() == len(rollouts) or _assert_alive(running), within_s=200)
        family += [process for pool in running for process in pool.family()]
        for process in family:
            with suppress(psutil.NoSuchProcess):
                assert [each for each in process.net_connections() if each.status == psutil.CONN_LISTEN] == []
        assert [pool.stop() for pool in running] == [0] * len(running)
        assert all(map(gone, family)), "no process is left"
    assert list(scratch.iterdir()) == [], "no file is left"
    assert list((tmp_path / "locks").glob("*.twice")) == [], "no rollout was played twice at once"
    assert stage.killed >= 10 and stage.filled >= 1
    check_each(stage.gateway, rollouts, pools)
    failures = [failure for pool in pools for record in records(pool).values() for failure in record.failures]
    assert {"worker"} <= {failure.boundary for failure in failures}


def _assert_alive(pools: list[Pool]) -> bool:
    assert all(pool.process.poll() is None for pool in pools), "a pool ended by itself"
    return False


@pytest.mark.slow
def test_a_pool_that_is_killed_again_and_again_loses_nothing(stage: Stage, tmp_path: Path) -> None:
    settings = pool_settings(stage.gateway, tmp_path, "phoenix", processes=8, failure_policy=POLICY)
    rollouts = enqueue(stage, 60, tmp_path)
    for kills in range(4):
        with started(settings, stage.worker) as pool:
            goal = len(rollouts) if kills == 3 else 15 * (kills + 1)
            until(lambda goal=goal: stage.gateway.ended() >= goal or _assert_alive([pool]), within_s=100)
            if kills == 3:
                assert pool.stop() == 0
    assert stage.gateway.states(rollouts) == {"succeeded"}
    assert all(stage.gateway.rewards(rollout_id) == [1.0] for rollout_id in rollouts)
    assert list((tmp_path / "locks").glob("*.twice")) == []
    # A pool that is killed between the gateway's answer and its own line has the end written nowhere but there.
    assert len(records(settings)) >= len(rollouts) - 3
