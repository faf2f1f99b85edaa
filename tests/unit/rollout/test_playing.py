"""An attempt's time begins when it has a worker; a class that can not be loaded keeps no process. Fakes throughout."""

import asyncio
from typing import Any

import pytest

from s3_agent.clients.gateway import Gateway, LocalConfig, Rollout, RolloutConfig, RolloutStatus
from s3_agent.rollout.episode_log import EpisodeLog
from s3_agent.rollout.failure_policy import FailurePolicy
from s3_agent.rollout.jobs import AttemptResult, Failure, Job
from s3_agent.rollout.pool import playing
from s3_agent.rollout.pool.crew import Crew
from s3_agent.rollout.pool.monitor import Monitor
from s3_agent.rollout.pool.playing import ActiveRollout, Player
from s3_agent.rollout.pool.pool_log import PoolLog
from s3_agent.rollout.pool.settings import PoolSettings


class FakeLink:
    """A worker that answers at once; `kills` counts how often it is killed."""

    def __init__(self, name: str, report: dict[str, Any]) -> None:
        self.name, self.report = name, report
        self.jobs: list[Job] = []
        self.kills = 0
        self._lost = asyncio.Event()

    async def play(self, job: Job) -> AttemptResult:
        self.jobs.append(job)
        return AttemptResult(attempt_id=job.attempt_id, **self.report)

    async def wait_lost(self) -> str:
        await self._lost.wait()
        return "killed"

    def kill(self) -> None:
        self.kills += 1
        self._lost.set()


class FakeLauncher:
    """Starts a worker when it is let go, and notes the classes that are retired."""

    def __init__(self, **report: Any) -> None:
        self.go = asyncio.Event()
        self.links: list[FakeLink] = []
        self.retired: list[str] = []
        self._report = report

    async def start_native(self, index: int) -> FakeLink:
        await self.go.wait()
        self.links.append(FakeLink(f"worker-{index}", self._report))
        return self.links[-1]

    async def start_forked(self, agent_class: str, *, names: tuple[str, ...] = ()) -> FakeLink:
        return await self.start_native(len(self.links))

    async def retire(self, agent_class: str) -> None:
        self.retired.append(agent_class)

    async def close(self) -> None:
        pass


def made(launcher: FakeLauncher, policy: FailurePolicy, *, processes: int = 1) -> tuple[Player, Crew]:
    monitor = Monitor()
    crew = Crew(launcher, processes=processes, concurrency=1, monitor=monitor)
    settings = PoolSettings(gateway_url="http://127.0.0.1:9", failure_policy=policy)
    gateway = Gateway.__new__(Gateway)  # only its addresses are asked for
    gateway.url = settings.gateway_url
    events = PoolLog(None, pool="p")
    return Player(settings, gateway, crew, key="k", monitor=monitor, episodes=EpisodeLog(None), events=events), crew


def a_run(agent_class: str | None = None, *, timeout_s: int = 600) -> ActiveRollout:
    config = RolloutConfig(timeout_seconds=timeout_s, local=LocalConfig(agent_class=agent_class))
    rollout = Rollout(rollout_id="r", input={}, config=config, status=RolloutStatus(state="running"))
    return ActiveRollout(rollout, agent_class, agent_class is None, "a")


async def test_waiting_for_a_worker_takes_nothing_from_an_attempt_and_kills_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(playing, "HUNG_AFTER_S", 0.0)
    launcher = FakeLauncher(reward=1.0)
    player, crew = made(launcher, FailurePolicy(attempt_timeout_s=0.05))
    keeping = asyncio.create_task(crew.run())
    attempt = asyncio.create_task(player._attempt(a_run(), "a"))
    await asyncio.sleep(0.2)  # four times what the attempt may take
    assert not attempt.done(), "it waits, and has not failed"
    launcher.go.set()
    async with asyncio.timeout(20):
        found = await attempt
    [link] = launcher.links
    assert (found.reward, found.failure, link.kills) == (1.0, None, 0)
    assert [job.seconds for job in link.jobs] == [0.05]
    keeping.cancel()


async def test_the_rollouts_deadline_ends_the_waiting() -> None:
    launcher = FakeLauncher(reward=1.0)
    player, crew = made(launcher, FailurePolicy())
    late = a_run(timeout_s=1)
    late.started -= 1.0
    async with asyncio.timeout(20):
        found = await player._attempt(late, "a")
    assert found.failure is not None and found.failure.boundary == "timeout"
    assert "no worker became free" in found.failure.message
    assert launcher.links == [] and late.worker == ""
    await crew.close()


async def test_a_class_that_can_not_be_loaded_keeps_no_process() -> None:
    launcher = FakeLauncher(failure=Failure(boundary="agent-import", message="no such class", retried=False))
    launcher.go.set()
    player, crew = made(launcher, FailurePolicy(), processes=4)
    names = [f"nowhere:Class{number}" for number in range(3)]
    attempts = await asyncio.gather(*(player._attempt(a_run(name), "a") for name in [*names, names[0]]))
    assert {attempt.failure and attempt.failure.boundary for attempt in attempts} == {"agent-import"}
    assert [link.kills for link in launcher.links] == [1] * 4
    assert {*launcher.retired} == {*names} and crew._forked == []
    await crew.close()


async def test_a_busy_worker_of_that_class_is_left_alone() -> None:
    launcher = FakeLauncher(reward=1.0)
    launcher.go.set()
    _, crew = made(launcher, FailurePolicy(), processes=4)
    async with crew.forked("some:Class", names=()):
        await crew.retire("some:Class")
        assert launcher.retired == [] and launcher.links[0].kills == 0
    await crew.retire("some:Class")
    assert launcher.retired == ["some:Class"] and launcher.links[0].kills == 1
    await crew.close()
