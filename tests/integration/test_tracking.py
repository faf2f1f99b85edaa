"""verl's tracking in a process of its own, as Agent Lightning's trainer uses it: every tracker gets s3's metrics."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from s3_agent.agl.run_files import run_environment
from s3_agent.data.tasks import read_jsonl

LOGGED = """
import sys, threading, time
import verl
import s3_agent.agl.tracking as s3_tracking
from verl.utils.tracking import Tracking  # as agentlightning/verl/trainer.py takes it
config = {
    "trainer": {},
    "data": {"train_batch_size": 3},
    "actor_rollout_ref": {"actor": {"ppo_mini_batch_size": 3}, "rollout": {"n": 2}},
    "agentlightning": {"agl_key": "secret-key", "agl_base_url": "http://gateway"},
}
tracking = Tracking("s3-agent", "a-run", ["file", *sys.argv[2:]], config)
episodes, rows = sys.argv[1], open(sys.argv[1] + ".new").read().splitlines(keepends=True)
def append(row):
    with open(episodes, "a") as file:
        file.write(row)
append(rows[0])
threading.Timer(0.5, append, [rows[1]]).start()  # the pool writes the last rollout after the trainer has seen its end
import torch
from verl.trainer.ppo.core_algos import get_adv_estimator_fn
rewards = torch.tensor([[1.0], [0.0], [1.0]])  # two rows of one question, one of another; the third question has none
get_adv_estimator_fn("s3_agent_grpo")(
    token_level_rewards=rewards, response_mask=torch.ones_like(rewards), index=["a", "a", "b"], config={}
)
step = {"n_rollouts": 2, "reward": 0.5, "n_sample_trained": 3, "n_groups": 2, "n_sample_dropped/random": 5}
tracking.log({f"training/{name}": value for name, value in step.items()}, step=1)
append(rows[2])
tracking.log({"val/n_rollouts": 1}, step=2)
class NeverWaits:
    time, monotonic = time.time, time.monotonic
s3_tracking.time = NeverWaits  # a wait for a rollout that was read in an earlier step fails
for new, trained in ((rows[3:6], 2), (rows[6:7], 2), ([], 0)):  # of the first three, one is trained in the next step
    for row in new:
        append(row)
    tracking.log({"training/n_rollouts": trained}, step=3)
del tracking
"""


def episode(number: int, *, is_train: bool = True, accuracy: float = 1.0) -> dict[str, Any]:
    turn = {"response": "r", "action": {"kind": "search", "query": "q"}, "passages": []}
    return {
        "rollout_id": f"r{number}",
        "attempt_id": "a",
        "attempts": 1,
        "is_train": is_train,
        "state": "succeeded",
        "accuracy": accuracy,
        "task": {"id": "1", "question": "q?", "golden_answers": ["a"], "rag_score": 0.0},
        "episode": {
            "agent": "s3",
            "prompt": "p",
            "initial_passages": [],
            "turns": [turn],
            "selected": [],
            "stop_reason": "finished",
        },
        "started_at": 0.0,
        "finished_at": 1.0,
    }


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    metrics, episodes = folder / "metrics.jsonl", folder / "episodes.jsonl"
    metrics.write_text('{"step": 0, "data": {"kept": 1}}\n')  # of the generation before
    episodes.write_text(json.dumps(episode(0)) + "\n")
    new = [episode(1), episode(2, accuracy=0.0), episode(3, is_train=False), *map(episode, range(4, 8))]
    (folder / "episodes.jsonl.new").write_text("".join(json.dumps(row) + "\n" for row in new))
    variables = run_environment(metrics=metrics, episodes=episodes, run="a-run", wandb_mode="offline", generation=1)
    done = subprocess.run(
        [sys.executable, "-c", LOGGED, str(episodes), "console", "tensorboard", "wandb"],
        env={**os.environ, **variables, "VERL_USE_EXTERNAL_MODULES": "s3_agent.agl.tracking"},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (folder / "console").write_text(done.stdout)
    (folder / "log").write_text(done.stderr)
    return folder


def test_each_step_has_the_metrics_of_its_own_rollouts(logged: Path) -> None:
    kept, first, second, *_ = read_jsonl(logged / "metrics.jsonl")
    assert kept == {"step": 0, "data": {"kept": 1}}, "a resumed run adds to the file"
    assert first["data"]["s3/train/rollouts"] == 2.0, "not the generation before, and the late one too"
    assert first["data"]["s3/train/accuracy"] == 0.5
    assert first["data"]["training/reward"] == 0.5
    assert 0 < first["at"] <= second["at"], "by which records of the steps are known from later ones"
    assert second["data"]["s3/val/rollouts"] == 1.0
    assert "s3/train/rollouts" not in second["data"]


def test_each_step_says_what_was_not_trained(logged: Path) -> None:
    _, first, second, *_ = read_jsonl(logged / "metrics.jsonl")
    lost = {name: first["data"][f"s3/train/{name}"] for name in ("rows_dropped", "groups_gone", "groups_of_one")}
    assert lost == {"rows_dropped": 5.0, "groups_gone": 1.0, "groups_of_one": 1.0}
    assert "s3/train/groups_of_one" not in second["data"], "a validation has no groups"
    assert "1 of 2 groups have one rollout left and count 0" in (logged / "log").read_text()


def test_rollouts_that_ended_before_their_step_are_not_waited_for(logged: Path) -> None:
    asynchronous = read_jsonl(logged / "metrics.jsonl")[3:]
    assert [row["data"].get("s3/train/rollouts") for row in asynchronous] == [3.0, 1.0, None]


def test_tensorboard_and_the_console_have_them(logged: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(logged / "tensorboard" / "1"))
    events.Reload()
    point, *_ = events.Scalars("s3/train/accuracy")
    assert (point.step, point.value) == (1, 0.5)
    assert "s3/train/accuracy" in (logged / "console").read_text()


def test_weights_and_biases_writes_offline_and_the_gateways_key_is_in_no_tracker(logged: Path) -> None:
    [run] = (logged / "wandb").glob("offline-run-*-a-run-1")
    [record] = run.glob("run-*.wandb")
    content = record.read_bytes()
    assert b"s3/train/accuracy" in content
    assert b"http://gateway" in content, "the configuration is there"
    for path in logged.rglob("*"):
        assert path.is_dir() or b"secret-key" not in path.read_bytes(), path


def test_a_trainer_of_yours_names_the_estimators_module_to_verl() -> None:
    """As docs/your-own-agent.md says: verl loads it at its own import, in whichever process."""
    program = "import verl, sys; from verl.trainer.ppo.core_algos import get_adv_estimator_fn as known; "
    program += "known('s3_agent_grpo'); print('s3_agent.agl.tracking' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "VERL_USE_EXTERNAL_MODULES": "s3_agent.agl.advantages"},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.splitlines()[-1] == "False", "which needs the files of a run"
