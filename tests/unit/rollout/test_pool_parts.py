"""The parts of the pool that need no process: the contract's environment, the gateway client, counts and views."""

import json
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from s3_agent.clients.gateway import Gateway, LocalConfig, Rollout, RolloutConfig, RolloutStatus
from s3_agent.clients.http import FIRST_WAIT_S
from s3_agent.errors import ConfigError, GatewayError
from s3_agent.rollout.episode_log import EpisodeLog, EpisodeRecord
from s3_agent.rollout.pool.contract import class_path, environment_of
from s3_agent.rollout.pool.metrics import serve_metrics
from s3_agent.rollout.pool.monitor import Monitor
from s3_agent.rollout.pool.view import line, show, table
from s3_agent.rollout.worker.native import WorkerSettings, is_native

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab01"), inner, max_size=3),
)
PATHS = st.lists(st.sampled_from(["input", "a", "b", "0", "1", "x"]), min_size=1, max_size=4).map(".".join)


def rollout(row: Any, env_map: dict[str, str]) -> Rollout:
    config = RolloutConfig(local=LocalConfig(agent_class="m:C", env_map=env_map))
    return Rollout(rollout_id="r", input=row, config=config, status=RolloutStatus(state="queuing"))


@given(row=JSON, path=PATHS)
def test_the_environment_is_the_stock_controllers(row: Any, path: str) -> None:
    stock_environment = pytest.importorskip("agentlightning.controller.local_reconciler")._build_env_from_map
    ours: Any = None
    try:
        ours = environment_of(rollout(row, {"NAME": path}), key="k", policy_url="p", event_url="e")
    except ConfigError as error:
        with pytest.raises(ValueError, match=r"path not found") as stock:
            stock_environment(row, {"NAME": path})
        assert str(stock.value) == error.message
        return
    assert ours == {
        "AGL_KEY": "k",
        "AGL_OPENAI_BASE_URL": "p",
        "AGL_EVENT_URL": "e",
        **stock_environment(row, {"NAME": path}),
    }


@pytest.mark.parametrize(
    ("written", "path"), [("a.b:C", "a.b:C"), ("a.b.C", "a.b:C"), ("C", "C"), ("", None), (None, None)]
)
def test_class_paths(written: str | None, path: str | None) -> None:
    assert class_path(written) == path


def test_what_is_native() -> None:
    settings = WorkerSettings(
        gateway_key="", retriever_url="", generator_url=None, policy_tokenizer="", native_agents=("m:Mine",)
    )
    assert [is_native(path, settings) for path in (None, "s3_agent.agl.entry:S3Agent", "m:Mine", "m:Other")] == [
        True,
        True,
        True,
        False,
    ]


class FakeGateway:
    """Answers in turn; `asked` holds method and body."""

    def __init__(self, *answers: tuple[int, Any]) -> None:
        self.asked: list[tuple[str, Any]] = []
        self._answers = list(answers)

    async def __call__(self, request: web.Request) -> web.Response:
        self.asked.append((request.method, await request.json() if request.can_read_body else None))
        status, body = self._answers.pop(0)
        return web.Response(status=status, body=json.dumps(body), headers={"Retry-After": "0.01"})


async def with_gateway(fake: FakeGateway, use: Any) -> Any:
    runner = web.ServerRunner(web.Server(fake))  # pyright: ignore[reportArgumentType]
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        async with Gateway(f"http://{host}:{port}", "key", patience_s=5.0) as gateway:
            return await use(gateway)
    finally:
        await runner.cleanup()


RUNNING = {"rollout": {"rollout_id": "r", "input": {}, "status": {"state": "running", "last_attempt_id": "mine"}}}


@pytest.mark.parametrize(
    ("answers", "claimed"),
    [
        ([(200, {})], True),
        ([(409, {})], False),
        ([(404, {})], False),
        ([(429, {}), (200, {})], True),
        ([(503, {}), (409, {}), (200, RUNNING)], True),
        ([(503, {}), (409, {}), (404, {})], False),
    ],
    ids=["ours", "another's", "deleted", "paused", "lost answer", "lost and deleted"],
)
async def test_a_claim_is_ours_or_not(answers: list[tuple[int, Any]], claimed: bool) -> None:
    fake = FakeGateway(*answers)
    assert await with_gateway(fake, lambda gateway: gateway.claim("r", "mine")) is claimed
    assert len(fake.asked) == len(answers), "a claim that was simply lost asks no further"


async def test_a_gateway_that_stays_away_is_an_error_with_a_remedy() -> None:
    async with Gateway("http://127.0.0.1:9", "", patience_s=0.1) as gateway:
        with pytest.raises(GatewayError, match=r"failed for 0 s.*ConnectorError") as error:
            await gateway.rollouts("queuing", limit=1)
    assert error.value.status is None and "running" in error.value.remedy


async def test_a_refusal_is_told_at_once() -> None:
    fake = FakeGateway((401, {"detail": "Invalid or missing API key"}))
    with pytest.raises(GatewayError, match="Invalid or missing API key") as error:
        await with_gateway(fake, lambda gateway: gateway.rollouts("queuing", limit=1))
    assert error.value.status == 401 and len(fake.asked) == 1


@pytest.mark.parametrize("status", [408, 425, 429, 503])
async def test_a_gateway_that_asks_for_no_wait_is_not_asked_without_pause(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        if seconds:  # aiohttp gives way to others, too
            waits.append(seconds)

    monkeypatch.setattr("s3_agent.clients.gateway.asyncio.sleep", sleep)
    fake = FakeGateway(*[(status, {})] * 4, (200, []))
    assert await with_gateway(fake, lambda gateway: gateway.rollouts("queuing", limit=1)) == []
    assert len(waits) == 4 and min(waits) >= FIRST_WAIT_S / 2


async def test_events_are_read_with_their_data() -> None:
    events = [{"event_type": "reward", "data": {"value": 1}}]
    assert await with_gateway(FakeGateway((200, events)), lambda gateway: gateway.events("r")) == events
    for odd in ([{"event_type": "reward"}], [{"data": {}}], [{"event_type": "reward", "data": 3}], {"detail": "?"}):
        with pytest.raises(GatewayError, match="unknown form"):
            await with_gateway(FakeGateway((200, odd)), lambda gateway: gateway.events("r"))


@pytest.mark.parametrize("body", [{"detail": "?"}, [{"no": "rollout"}], 7])
async def test_an_unknown_form_is_named(body: Any) -> None:
    fake = FakeGateway((200, body))
    with pytest.raises(GatewayError, match="unknown form"):
        await with_gateway(fake, lambda gateway: gateway.rollouts("queuing", limit=1))


def test_a_record_that_is_written_can_be_read(tmp_path: Path) -> None:
    log = EpisodeLog(str(tmp_path / "e.jsonl"))
    fields = {
        "rollout_id": "r",
        "attempt_id": "a",
        "attempts": 2,
        "is_train": True,
        "state": "failed",
        "failures": [{"attempt_id": "b", "boundary": "worker", "message": "ü\ud800"}],
        "started_at": 1.0,
        "finished_at": 2.0,
    }
    log.write(fields)
    log.write(fields)
    log.close()
    lines = (tmp_path / "e.jsonl").read_text(encoding="utf-8").splitlines()
    read = [EpisodeRecord.model_validate_json(each) for each in lines]
    assert [each.failures[0].message for each in read] == ["ü?", "ü?"]


def some_counts() -> Monitor:
    monitor = Monitor(queued=7, queue_is_longer=True, running=3, workers=2)
    for number in range(100):
        monitor.ended({"search_s": number / 100}, reward=number % 2, boundary=None)
    monitor.ended({}, reward=None, boundary="retriever")
    monitor.failed_attempts["worker"] += 5
    return monitor


def test_the_view_tells_what_the_issue_asks_for() -> None:
    monitor = some_counts()
    console = Console(width=100, record=True, file=StringIO())
    console.print(table(monitor, title="pool p"))
    text = console.export_text()
    for told in ("7+", "retriever 1", "worker 5", "0.500", "0.50 s / 0.95 s", "pool p"):
        assert told in text
    assert line(monitor)["reward_mean"] == 0.5 and line(monitor)["failed"] == {"retriever": 1}
    assert monitor.rate > 0 and monitor.done == 101


@pytest.mark.parametrize("plain", [True, False])
def test_both_views_start_and_end(plain: bool) -> None:
    console = Console(force_terminal=not plain, width=80, file=StringIO())
    with show(some_counts(), title="pool", plain=plain, console=console):
        pass


def test_metrics_are_served_here_alone_and_only_while_asked_for() -> None:
    with serve_metrics(some_counts(), port=0) as port:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        with pytest.raises(ConfigError, match=f"port {port}"), serve_metrics(Monitor(), port=port):
            pass
    for told in (
        's3_agent_rollouts_total{boundary=""} 100.0',
        's3_agent_rollouts_total{boundary="retriever"} 1.0',
        's3_agent_failed_attempts_total{boundary="worker"} 5.0',
        "s3_agent_rollouts_queued 7.0",
        "s3_agent_workers 2.0",
        's3_agent_phase_seconds_count{phase="search"} 100.0',
        "s3_agent_reward_sum 50.0",
    ):
        assert told in text
