"""How many policy calls pass at a time: real gateways, the stock one and ours, before a fake policy that waits."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import agentlightning
import httpx
import pytest
import structlog
from agentlightning.server import app as stock_server
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from benchmarks.real_gateway import KEY, GatewayApi, real_gateway
from s3_agent.agl import gateway as entry
from s3_agent.clients.gateway import Gateway
from s3_agent.clients.gateway_limit import STOCK_POLICY_CALLS, GatewayLimit, gateway_limit
from s3_agent.doctor.gather import gather
from s3_agent.doctor.limits import gateway_of
from s3_agent.errors import ConfigError, GatewayError, LaunchError
from s3_agent.recipe import load_recipe
from s3_agent.rollout.failure_policy import TIMEOUT
from s3_agent.rollout.jobs import Job
from s3_agent.rollout.pool import supervisor as supervisor_module
from s3_agent.rollout.worker.native import RecipeAgent, WorkerSettings
from s3_agent.rollout.worker.worker import NativeWorker
from s3_agent.testing.fakes import FakeSlowPolicy
from s3_agent.testing.servers import policy_app, serve
from tests.pool_harness import make_supervisor, pool_settings, task, until, work, worker_settings

ONE_CALL = "benchmarks.native_agents:OneCallNative"
BODY = {"prompt": [65, 66], "max_tokens": 4, "stop": []}


@contextmanager
def held(folder: Path, *, stock: bool = False, calls: int | None = None) -> Iterator[tuple[GatewayApi, FakeSlowPolicy]]:
    """A gateway, and the policy behind it, which answers when it is released."""
    policy = FakeSlowPolicy(lambda _: "x")
    with (
        serve(policy_app(policy)) as url,
        real_gateway(folder, policy_url=url, stock=stock, calls=calls) as gateway,
    ):
        try:
            yield gateway, policy
        finally:
            policy.release()


@asynccontextmanager
async def calling(gateway: GatewayApi, count: int) -> AsyncIterator[list[asyncio.Task[httpx.Response]]]:
    """Policy calls of somebody who knows of no limit, all of them in the gateway."""
    [rollout] = gateway.enqueue({})
    theirs = {"status": {"state": "running", "last_attempt_id": "somebody-else"}}
    gateway.http.patch(f"/api/rollouts/{rollout}", json=theirs).raise_for_status()
    url = f"{gateway.url}/proxy/rollout/{rollout}/attempt/a/mode/train/openai/v1/completions"
    limits, headers = httpx.Limits(max_connections=None), {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(timeout=60, limits=limits, headers=headers) as http:
        tasks = [asyncio.create_task(http.post(url, json=BODY)) for _ in range(count)]
        await eventually(lambda: in_gateway(gateway) == count)
        try:
            yield tasks
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            gateway.delete([rollout])


def in_gateway(gateway: GatewayApi) -> int:
    return gateway.http.get("/proxy/state").json()["inflight"]


async def eventually(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(until, condition)


@pytest.mark.parametrize(("stock", "passed"), [(True, STOCK_POLICY_CALLS), (False, 130)], ids=["stock", "ours"])
async def test_of_130_calls_the_stock_gateway_passes_100_and_ours_all(stock: bool, passed: int, tmp_path: Path) -> None:
    with held(tmp_path, stock=stock) as (gateway, policy):
        async with calling(gateway, 130) as tasks:
            await eventually(lambda: policy.calls == passed)
            policy.release()
            answers = await asyncio.gather(*tasks)
        assert {answer.status_code for answer in answers} == {200}
        assert policy.most_calls == passed
        async with Gateway(gateway.url, KEY) as client:
            said = await client.limit(stated=None)
        assert said.calls == (STOCK_POLICY_CALLS if stock else None)
        assert gateway_of(gather(load_recipe("cpu", [f"gateway.url={gateway.url}", "gateway.key=k"]))) == said


async def test_a_pool_claims_no_more_rollouts_than_a_silent_gateway_passes(tmp_path: Path) -> None:
    """Of nine rollouts for which there is room three are claimed, as the recipe says of the stock gateway."""
    with held(tmp_path, stock=True) as (gateway, policy), structlog.testing.capture_logs() as logged:
        settings = pool_settings(gateway, tmp_path, "bounded", policy_calls=3)
        rollouts = gateway.enqueue(*({"number": number} for number in range(9)), agent_class=ONE_CALL)
        playing = asyncio.create_task(work(gateway, rollouts, make_supervisor(settings, one_call(concurrency=9))))
        await eventually(lambda: policy.calls == 3)
        assert [gateway.status(each)["state"] for each in rollouts].count("queuing") == 6
        policy.release()
        await playing
        assert gateway.states(rollouts) == {"succeeded"}
        assert policy.most_calls == 3
    [said] = [line for line in logged if "passes fewer policy calls" in line["event"]]
    assert (said["policy_calls"], said["room"], said["basis"]) == (3, 9, "set by gateway.policy_calls")


async def test_a_pool_fills_our_gateway_and_says_nothing(tmp_path: Path) -> None:
    with held(tmp_path) as (gateway, policy), structlog.testing.capture_logs() as logged:
        rollouts = gateway.enqueue(*({"number": number} for number in range(9)), agent_class=ONE_CALL)
        settings = pool_settings(gateway, tmp_path, "free")
        playing = asyncio.create_task(work(gateway, rollouts, make_supervisor(settings, one_call(concurrency=9))))
        await eventually(lambda: policy.calls == 9)
        policy.release()
        await playing
        assert gateway.states(rollouts) == {"succeeded"}
    assert not [line for line in logged if line["log_level"] == "warning"]


async def test_a_pool_claims_nothing_while_others_fill_the_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int | None] = []
    look = Gateway.policy_calls

    async def count(gateway: Gateway) -> int | None:
        looked.append(await look(gateway))
        return looked[-1]

    monkeypatch.setattr(supervisor_module, "WATCH_S", 0.05)
    monkeypatch.setattr(Gateway, "policy_calls", count)
    with held(tmp_path, calls=4) as (gateway, policy):
        async with calling(gateway, 5) as others:
            [rollout] = gateway.enqueue({"number": 0}, agent_class=ONE_CALL)
            settings = pool_settings(gateway, tmp_path, "patient")
            playing = asyncio.create_task(work(gateway, [rollout], make_supervisor(settings, one_call(concurrency=2))))
            await eventually(lambda: len(looked) > 5)
            assert looked[:5] == [5] * 5
            assert gateway.status(rollout)["state"] == "queuing"
            policy.release()
            await playing
            assert {(await each).status_code for each in others} == {200}
        assert gateway.status(rollout)["state"] == "succeeded"
        assert policy.most_calls == 4


async def test_a_pool_works_on_a_gateway_without_the_list_of_ended_rollouts(
    gateway: GatewayApi, worker: WorkerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch for a gateway that was started again has nothing to look at there; its end is not the pool's."""

    async def missing(_: Gateway) -> int:
        raise GatewayError("no such page", status=404)

    monkeypatch.setattr(Gateway, "terminal_count", missing)
    rollouts = gateway.enqueue(*map(task, range(3)))
    await work(gateway, rollouts, make_supervisor(pool_settings(gateway, tmp_path, "old-gateway"), worker))
    assert gateway.states(rollouts) == {"succeeded"}


def one_call(*, concurrency: int) -> WorkerSettings:
    settings = worker_settings("http://127.0.0.1:1", "http://127.0.0.1:1", concurrency=concurrency)
    return settings.model_copy(update={"native_agents": (ONE_CALL,)})


def stock_config(**values: object) -> DictConfig:
    folder = Path(agentlightning.__file__).parent / "config"
    return DictConfig(OmegaConf.merge(OmegaConf.load(folder / "server.yaml"), values))


async def test_only_the_client_of_the_stock_application_is_another() -> None:
    stock = stock_server.create_app(stock_config())
    app = entry.gateway_app(stock_config())
    assert app.openapi()["paths"].keys() - stock.openapi()["paths"].keys() == {"/s3-agent/gateway"}
    async with app.router.lifespan_context(app):
        assert app.state.http_client.timeout == httpx.Timeout(None, connect=entry.CONNECT_S)


async def test_what_would_go_on_using_the_stock_client_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[httpx.AsyncClient] = []
    create = stock_server.create_app

    def keeping(config: DictConfig) -> FastAPI:
        app = create(config)
        start = app.router.lifespan_context

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            async with start(app):
                kept.append(app.state.http_client)
                yield

        app.router.lifespan_context = lifespan
        return app

    monkeypatch.setattr(entry, "create_app", keeping)
    app = entry.gateway_app(stock_config())
    async with app.router.lifespan_context(app):
        with pytest.raises(RuntimeError, match="closed"):
            await kept[0].post("http://127.0.0.1:1/v1/completions")


async def test_a_version_that_keeps_its_client_elsewhere_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "create_app", lambda _: FastAPI())
    app = entry.gateway_app(stock_config())
    with pytest.raises(LaunchError, match=r"has no app\.state\.http_client"):
        async with app.router.lifespan_context(app):
            raise AssertionError("it started")


@pytest.mark.parametrize("calls", [0, -1, 1.5, "many"])
def test_a_limit_that_is_none_is_refused(calls: object) -> None:
    with pytest.raises(ConfigError, match="policy_calls is"):
        entry.gateway_app(stock_config(policy_calls=calls))


@given(own=st.none() | st.integers(1, 10_000), stated=st.none() | st.integers(1, 10_000))
def test_a_gateway_is_believed_and_a_recipe_can_only_ask_for_less(own: int | None, stated: int | None) -> None:
    answer = httpx.Response(200, json={"policy_calls": own}).content
    known = [limit for limit in (own, stated) if limit is not None]
    assert gateway_limit(answer, stated=stated).calls == min(known, default=None)


@given(
    answer=st.none()
    | st.text()
    | st.sampled_from(["[]", "null", "{}", '{"policy_calls": 0}', '{"policy_calls": true}', '{"policy_calls": "9"}']),
    stated=st.none() | st.integers(1, 10_000),
)
def test_a_gateway_that_says_nothing_is_taken_for_a_stock_one(answer: str | None, stated: int | None) -> None:
    assert gateway_limit(answer, stated=stated).calls == (stated or STOCK_POLICY_CALLS)
    assert GatewayLimit(None, "").bounds(10**9) is False


async def test_a_policy_call_may_take_as_long_as_its_attempt_and_ends_with_it() -> None:
    settings, policy = one_call(concurrency=1), FakeSlowPolicy(lambda _: "x")
    own = RecipeAgent(settings)._policy_http  # pyright: ignore[reportPrivateUsage]
    assert own.timeout == httpx.Timeout(None, connect=10.0)
    worker = NativeWorker(settings)
    with serve(policy_app(policy)) as url:
        job = Job(
            rollout_id="r",
            attempt_id="a",
            is_train=True,
            input={},
            policy_url=f"{url}/v1",
            event_url=url,
            seconds=0.5,
            agent_class=ONE_CALL,
        )
        report = await worker.play(job)
        policy.release()
        again = await worker.play(job.model_copy(update={"seconds": 60.0}))
    await worker.close()
    assert report.failure is not None and report.failure.boundary == TIMEOUT
    assert again.reward == 1.0
