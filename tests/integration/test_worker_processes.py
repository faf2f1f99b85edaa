"""What a worker process does with the messages it gets: times of nothing, cancels that come with their job, garbage."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from s3_agent.embedded import NANO_POLICY
from s3_agent.errors import ConfigError
from s3_agent.rollout.cancelling import cancel_line
from s3_agent.rollout.jobs import AttemptResult, Failure, Job
from s3_agent.rollout.pool.launcher import LocalLauncher, SocketLink, WorkerLost
from s3_agent.rollout.worker.native import WorkerSettings
from s3_agent.rollout.worker.worker import NativeWorker
from tests.agents.native import ODD_ENDS, ODD_RESULTS

PLAIN = "tests.agents.plain:Sleeps"
WORKER = WorkerSettings(
    gateway_key="k",
    retriever_url="http://127.0.0.1:9",
    generator_url="http://127.0.0.1:9",
    policy_tokenizer=str(NANO_POLICY),
    native_agents=("tests.agents.native:EndsOddly",),
)


def job(attempt_id: str, *, seconds: float = 60.0, sleeps: float = 600.0, **fields: Any) -> Job:
    environment = {"SECONDS": str(sleeps)}
    common: dict[str, Any] = {"is_train": True, "input": {}, "policy_url": "", "event_url": ""}
    return Job(
        rollout_id="r", attempt_id=attempt_id, seconds=seconds, **{**common, "environment": environment, **fields}
    )


@pytest.fixture
async def launcher() -> AsyncIterator[LocalLauncher]:
    launcher = LocalLauncher(WORKER)
    async with asyncio.timeout(60):
        yield launcher
        await launcher.close()


async def test_an_attempt_that_may_take_no_time_is_killed(launcher: LocalLauncher) -> None:
    link = await launcher.start_forked(PLAIN)
    for number in range(5):
        report = await link.play(job(f"late-{number}", seconds=0.0))
        assert report.failure is not None and report.failure.boundary == "timeout"
    assert (await link.play(job("next", sleeps=0.0))).failure is None


async def test_a_cancel_that_comes_in_one_packet_with_its_job_is_obeyed(launcher: LocalLauncher) -> None:
    link = await launcher.start_forked(PLAIN)
    other, own = (cancel_line(name) for name in ("another", "given up"))
    link._writer.write(job("given up").as_json().encode() + b"\n" + other + own)
    assert (await link.play(job("next", sleeps=0.0))).failure is None


async def test_a_native_worker_obeys_it_too_and_goes_on(launcher: LocalLauncher) -> None:
    link = await launcher.start_native(0)
    agent = "tests.agents.native:EndsOddly"
    waits = job("given up", agent_class=agent, input={"until": os.devnull + "/never"})
    link._writer.write(waits.as_json().encode() + b"\n" + cancel_line("given up"))
    report = await link.play(job("next", agent_class=agent, input={"until": os.devnull}))
    assert (report.reward, report.failure) == (1.0, None)


class FakeZygote:
    async def reason(self, pid: int) -> str:
        return "it ended"


@pytest.mark.parametrize(
    "sent",
    [b"no json\n", b"{}\n", b'{"attempt_id": "a", "reward": NaN}\n', b'{"attempt_id": "a", "output": "\\ud800"}\n'],
)
async def test_what_is_no_report_loses_the_worker_and_nobody_waits_for_it(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []
    monkeypatch.setattr(SocketLink, "kill", lambda link: killed.append(link.pid))
    ours, theirs = socket.socketpair()
    link = SocketLink("fake", 7, FakeZygote())  # pyright: ignore[reportArgumentType]
    await link.connect(ours)
    playing = [asyncio.create_task(link.play(job(name))) for name in ("a", "b")]
    await asyncio.sleep(0)
    theirs.send(sent)
    async with asyncio.timeout(10):
        ends = await asyncio.gather(*playing, return_exceptions=True)
        assert "not a report" in await link.wait_lost()
    assert [type(end) for end in ends] == [WorkerLost, WorkerLost] and killed == [7]
    theirs.close()


@pytest.mark.parametrize("odd", [*ODD_RESULTS, *ODD_ENDS])
async def test_every_attempt_gets_a_report_that_can_be_sent(odd: str, tmp_path: Any) -> None:
    worker = NativeWorker(WORKER)
    asked = job("a", agent_class="tests.agents.native:EndsOddly", input={"odd": odd, "mark": str(tmp_path / "mark")})
    report = await worker.play(asked)
    assert report.failure is not None and report.failure.retried and report.reward is None
    assert AttemptResult.model_validate_json(report.model_dump_json()) == report
    assert (await worker.play(asked)).reward == 0.5


def test_a_failure_can_always_be_sent_and_an_input_that_can_not_is_named() -> None:
    assert Failure(boundary="agent", message="a\ud800").message == "a\\ud800"
    with pytest.raises(ConfigError, match="can not be sent"):
        job("a", input={"question": "\ud800"}).as_json()
