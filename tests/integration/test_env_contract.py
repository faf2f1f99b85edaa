"""Classes written for AGL's local controller, unchanged, under it and under our pool, on the real gateway."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.real_gateway import KEY, GatewayApi
from s3_agent.rollout.failure_policy import FailurePolicy
from s3_agent.rollout.pool.recorded import NO_TOKENS, OTHER_CHOICES, SAME_PROMPT
from s3_agent.rollout.pool.settings import PoolSettings
from s3_agent.rollout.worker.native import WorkerSettings
from tests.pool_harness import QUICK, ROOT, gone, pool_settings, records, started, task, until

PLAIN = "tests.agents.plain"
ENV_MAP = {
    "QUESTION": "input.question",
    "GOLD": "input.golden_answers",
    "NESTED": "input.golden_answers.0",
    "CONSTANT": "as it is",
}


@pytest.fixture
def settings(gateway: GatewayApi, tmp_path: Path, request: pytest.FixtureRequest) -> PoolSettings:
    return pool_settings(gateway, tmp_path, request.node.name, processes=2)


@contextmanager
def stock_controller(gateway: GatewayApi, folder: Path) -> Iterator[None]:
    """AGL's own local controller, at its quickest legal settings."""
    command = [
        *(sys.executable, "-m", "agentlightning.controller", "runner_type=local"),
        *(f"agl_server.url={gateway.url}", f"agl_server.key={KEY}"),
        *("local_runner.poll_interval=0.1", "local_runner.maximum_size=50"),
        *(f"hydra.run.dir='{folder}'", "hydra.output_subdir=null"),
        *("hydra/job_logging=none", "hydra/hydra_logging=none"),
    ]
    environment = {**os.environ, "INHERITED": "from the controller"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def play(gateway: GatewayApi, agent_class: str, *inputs: Any, **env_map: str) -> list[str]:
    return gateway.enqueue(*inputs, agent_class=agent_class, env_map={**ENV_MAP, **env_map})


def ended(gateway: GatewayApi, rollout_ids: list[str]) -> bool:
    return gateway.states(rollout_ids) <= {"succeeded", "failed"}


def seen(gateway: GatewayApi, rollout_id: str, event_type: str = "seen") -> dict[str, Any]:
    [event] = [event for event in gateway.events(rollout_id) if event["event_type"] == event_type]
    return event["data"]


def test_a_class_sees_the_same_under_both_controllers(
    gateway: GatewayApi, settings: PoolSettings, worker: WorkerSettings, tmp_path: Path
) -> None:
    classes = [f"{PLAIN}:TellsWhatItSees", f"{PLAIN}.TellsWhatItSees", f"{PLAIN}:AsksThePolicy"]

    def enqueue() -> list[str]:
        return [play(gateway, agent_class, task(1))[0] for agent_class in classes]

    theirs = enqueue()
    with stock_controller(gateway, tmp_path):
        until(lambda: ended(gateway, theirs))
    ours = enqueue()
    with started(settings, worker, INHERITED="from the controller") as pool:
        until(lambda: ended(gateway, ours))
        assert pool.stop() == 0
    assert gateway.states([*theirs, *ours]) == {"succeeded"}
    for at in range(3):
        assert gateway.rewards(theirs[at]) == gateway.rewards(ours[at]) != []
    for at in range(2):
        there, here = seen(gateway, theirs[at]), seen(gateway, ours[at])
        assert here == {**there, "path": here["path"]}
        assert here["path"][0] == there["path"][0] == ""
        assert here["environment"]["INHERITED"] == "from the controller"
    assert [event["event_type"] for event in gateway.events(ours[2])] == ["model_request", "reward"]
    output = records(settings)[ours[2]].output
    assert output is not None and "asked about What is the currency of Norway?" in output


def test_nothing_of_a_rollout_reaches_the_next(
    gateway: GatewayApi, settings: PoolSettings, worker: WorkerSettings, tmp_path: Path
) -> None:
    one = settings.model_copy(update={"processes": 1})
    pids = tmp_path / "pids"
    rollouts = play(gateway, f"{PLAIN}:LeavesEverythingBehind", *map(task, range(3)), PIDS=str(pids))
    with started(one, worker) as pool:
        until(lambda: ended(gateway, rollouts))
        workers = {record.worker for record in records(one).values()}
        assert len(workers) == 1, "they shared a worker"
        left = [int(line) for line in pids.read_text().split()]
        assert len(left) == 3 and not any(psutil.pid_exists(pid) for pid in left)
        names = [process.name() for process in pool.family() if not gone(process)]
        assert "sleep" not in names
        assert pool.stop() == 0
    for rollout_id in rollouts:
        found = seen(gateway, rollout_id, "found")
        assert found == {"left": [], "variable": None, "cwd": str(ROOT), "module": False}


@pytest.mark.parametrize(
    ("how", "boundary", "said"),
    [
        ("exception", "agent", "exited with code 1: RuntimeError: as I was told"),
        ("exit", "agent", "exited with code 7"),
        ("killed", "worker", "killed by SIGKILL"),
        ("never", "timeout", "did not end within"),
    ],
)
def test_a_class_that_fails_is_tried_again_and_its_reward_does_not_count(
    gateway: GatewayApi,
    settings: PoolSettings,
    worker: WorkerSettings,
    tmp_path: Path,
    how: str,
    boundary: str,
    said: str,
) -> None:
    policy = FailurePolicy(first_wait_s=0.05, attempt_timeout_s=2.0)
    logs = tmp_path / "logs"
    limited = settings.model_copy(update={"failure_policy": policy, "agent_logs": str(logs)})
    fields = {"MARK": str(tmp_path / "mark"), "HOW": how, "PIDS": str(tmp_path / "pids")}
    [rollout_id] = play(gateway, f"{PLAIN}:FailsOnce", task(1), **fields)
    with started(limited, worker) as pool:
        until(lambda: ended(gateway, [rollout_id]))
        assert [process.name() for process in pool.family() if process.name() == "sleep"] == []
        assert pool.stop() == 0
    assert gateway.rewards(rollout_id) == [1.0]
    record = records(settings)[rollout_id]
    assert (record.state, record.attempts, record.reward) == ("succeeded", 2, 1.0)
    [failure] = record.failures
    assert failure.boundary == boundary and said in failure.message
    assert "about to fail" in (logs / f"{failure.attempt_id}.log").read_text()


def test_a_class_that_ends_well_without_a_finite_reward_has_failed(
    gateway: GatewayApi, settings: PoolSettings, worker: WorkerSettings
) -> None:
    rewards = ["", "NaN", "Infinity", "-1e999", "1" + "0" * 400, "true", "null", '"1.0"']
    rollouts = [play(gateway, f"{PLAIN}:EndsWithoutReward", task(1), REWARD=reward)[0] for reward in rewards]
    twice = settings.model_copy(update={"failure_policy": QUICK.model_copy(update={"most_attempts": 2})})
    with started(twice, worker) as pool:
        until(lambda: ended(gateway, rollouts))
        assert pool.stop() == 0
    for reward, rollout_id in zip(rewards, rollouts, strict=True):
        status, record = gateway.status(rollout_id), records(settings)[rollout_id]
        assert status["state"] == "failed" and "posted no reward" in status["error_message"]
        if reward in ("true", '"1.0"'):
            assert f"its last is {reward}" in status["error_message"]
        assert gateway.events(rollout_id) == []
        assert (record.attempts, record.reward, {failure.boundary for failure in record.failures}) == (
            2,
            None,
            {"reward"},
        )


def test_answers_that_no_row_trains_are_counted_and_logged_once_a_class(
    gateway: GatewayApi, settings: PoolSettings, worker: WorkerSettings, tmp_path: Path
) -> None:
    """Best-of-n, the same prompt again and a policy server without token ids, through the real gateway."""
    asked = [play(gateway, f"{PLAIN}:AsksTooMuch", task(number))[0] for number in range(3)]
    [plain] = play(gateway, f"{PLAIN}:AsksThePolicy", task(1))
    with started(settings, worker, log=tmp_path / "log") as pool:
        until(lambda: ended(gateway, [*asked, plain]))
        assert pool.stop() == 0
    found = records(settings)
    for rollout_id in asked:
        recorded = gateway.http.get(f"/api/rollouts/{rollout_id}/events", params={"format": "triplet"}).json()
        rows = [event for event in recorded if event["data"].get("response_token_ids")]
        assert len(rows) == 2, "of five answers the trainer would see two"
        assert found[rollout_id].metrics == {"answers_untrained": 3.0}
    assert found[plain].metrics == {}
    logged = (tmp_path / "log").read_text()
    for reason in (SAME_PROMPT, OTHER_CHOICES, NO_TOKENS):
        assert logged.count(reason) == 1


def test_a_streamed_call_is_refused_and_fails_the_attempt(
    gateway: GatewayApi, settings: PoolSettings, worker: WorkerSettings
) -> None:
    [rollout_id] = play(gateway, f"{PLAIN}:AsksTooMuch", task(1), STREAMED="yes")
    once = settings.model_copy(update={"failure_policy": QUICK.model_copy(update={"most_attempts": 1})})
    with started(once, worker) as pool:
        until(lambda: ended(gateway, [rollout_id]))
        assert pool.stop() == 0
    assert gateway.status(rollout_id)["state"] == "failed"
    assert "400 Bad Request" in str(records(settings)[rollout_id].output)


def test_a_class_that_does_not_load_fails_its_rollout_and_not_the_pool(
    gateway: GatewayApi, settings: PoolSettings, worker: WorkerSettings
) -> None:
    said = {
        "tests.agents.broken:Never": "No module named 'no_such_module_of_anybody'",
        "tests.agents.nowhere:Never": "No module named 'tests.agents.nowhere'",
        f"{PLAIN}:Nobody": "has no attribute 'Nobody'",
        f"{PLAIN}:not_a_class": "is not a class",
        "no_colon_or_dot": "can not be loaded",
        "": "not a task row",
    }
    bad = {agent_class: gateway.enqueue({}, agent_class=agent_class)[0] for agent_class in said}
    [good] = play(gateway, f"{PLAIN}:AsksThePolicy", task(1))
    with started(settings, worker) as pool:
        until(lambda: ended(gateway, [*bad.values(), good]))
        # The processes that fork: one for native agents, one for the class that loads.
        until(lambda: len(pool.zygotes()) == 2)
        assert pool.stop() == 0
    for agent_class, rollout_id in bad.items():
        status = gateway.status(rollout_id)
        assert status["state"] == "failed" and said[agent_class] in status["error_message"]
        assert gateway.events(rollout_id) == [] and records(settings)[rollout_id].attempts == 1
    assert gateway.rewards(good) == [1.0]


def test_a_class_that_reads_its_variables_at_import_gets_its_own(
    gateway: GatewayApi, settings: PoolSettings, worker: WorkerSettings
) -> None:
    questions = ["What is one?", "What is two?"]
    rows = [task(1, question=question) for question in questions]
    rollouts = play(gateway, "tests.agents.at_import:ReadsAtImport", *rows)
    with started(settings, worker) as pool:
        until(lambda: ended(gateway, rollouts))
        assert pool.stop() == 0
    assert [seen(gateway, rollout_id)["question"] for rollout_id in rollouts] == questions


def test_only_allowed_classes_run_and_a_missing_field_is_named(
    gateway: GatewayApi, settings: PoolSettings, worker: WorkerSettings
) -> None:
    [refused] = play(gateway, "os:system", task(1))
    [other] = play(gateway, f"{PLAIN}.AsksThePolicy", task(1))
    [unmapped] = play(gateway, f"{PLAIN}:AsksThePolicy", task(1), WRONG="input.no.such")
    with started(settings.model_copy(update={"allowed": ("tests.agents.*:*",)}), worker) as pool:
        until(lambda: ended(gateway, [refused, other, unmapped]))
        assert pool.stop() == 0
    assert "os:system is not among the classes" in gateway.status(refused)["error_message"]
    assert gateway.status(other)["state"] == "succeeded" and gateway.rewards(other) == [1.0]
    assert "local.env_map path not found: input.no.such" in gateway.status(unmapped)["error_message"]


def test_a_killed_pool_leaves_no_class_running(
    gateway: GatewayApi, settings: PoolSettings, worker: WorkerSettings, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    fields = {"MARK": str(tmp_path / "mark"), "HOW": "never", "PIDS": str(pids)}
    [rollout_id] = play(gateway, f"{PLAIN}:FailsOnce", task(1), **fields)
    with started(settings, worker) as pool:
        until(lambda: pids.exists() and pids.read_text())
        family = pool.family()
        assert int(pids.read_text()) in {process.pid for process in family}
        pool.process.kill()
        until(lambda: all(map(gone, family)), within_s=5.0)
    with started(settings, worker) as pool:
        until(lambda: ended(gateway, [rollout_id]))
        assert pool.stop() == 0
    assert gateway.rewards(rollout_id) == [1.0]


def test_a_killed_worker_process_takes_its_class_along(
    gateway: GatewayApi, settings: PoolSettings, worker: WorkerSettings, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    fields = {"MARK": str(tmp_path / "mark"), "HOW": "never", "PIDS": str(pids)}
    [rollout_id] = play(gateway, f"{PLAIN}:FailsOnce", task(1), **fields)
    with started(settings, worker) as pool:
        until(lambda: pids.exists() and pids.read_text())
        agent = psutil.Process(int(pids.read_text()))
        parent = agent.parent()
        assert parent is not None
        victims = [agent, *agent.children(recursive=True)]
        parent.kill()
        until(lambda: all(map(gone, victims)), within_s=5.0)
        until(lambda: ended(gateway, [rollout_id]))
        assert pool.stop() == 0
    [failure] = records(settings)[rollout_id].failures
    assert failure.boundary == "worker" and "SIGKILL" in failure.message
    assert gateway.rewards(rollout_id) == [1.0]
