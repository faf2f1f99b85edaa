"""Agents side by side: `s3-agent compare` in short, with a stranger's agent that is known by its import path alone."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pytest

from s3_agent.agl.verl_config import TrainerSettings
from s3_agent.data.tasks import read_jsonl
from s3_agent.evaluation.comparison import Comparison
from s3_agent.processes.run_folder import Run
from s3_agent.rollout.episode_log import EpisodeRecord
from tests.e2e.conftest import QUESTIONS, ROLLOUTS, ROOT, Services, rag_cache_of
from tests.installed_wheel import install_beside

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

STRANGER = "one_look_agent:OneLook"
CLASSES = {
    "s3-seed0": "s3_agent.agl.entry:S3Agent",
    "search_r1-seed0": "s3_agent.agl.entry:SearchR1Agent",
    "one_look_agent-OneLook-seed0": STRANGER,
    "s3-rewards-shuffled-seed0": "s3_agent.rollout.worker.controls:ShuffledRewards",
    "s3-learning-rate-0-seed0": "s3_agent.agl.entry:S3Agent",
}
VALIDATION = 8
OWN = {"run", "model", "agent_class", "env_map", "gateway_url", "checkpoints"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stranger's package, built and installed into a folder of its own."""
    return install_beside(ROOT / "examples/your_own_agent", tmp_path_factory.mktemp("stranger"))


@dataclass(frozen=True)
class Compared:
    """The folder of a comparison, how to go on with it, and what it printed."""

    out: Path
    command: list[str]
    environment: dict[str, str]
    printed: str

    @property
    def runs(self) -> dict[str, Run]:
        return {name: Run(self.out / "runs" / name) for name in CLASSES}


@pytest.fixture(scope="module")
def compared(services: Services, tasks: Path, installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    out = tmp_path_factory.mktemp("compared") / "out"
    small = [
        f"data.train={tasks}",
        f"data.rag_cache={rag_cache_of(tasks)}",
        f"data.validation_size={VALIDATION}",
        "trainer.steps=1",
        f"trainer.questions_per_step={QUESTIONS}",
        f"trainer.rollouts_per_question={ROLLOUTS}",
    ]
    command = [sys.executable, "-m", "s3_agent.cli", "compare", "s3", "search_r1", STRANGER]
    command += ["--seeds", "0", "--at-once", "2", "--out", str(out), *services.overrides, *small]
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-6000:]
    return Compared(out, command, environment, done.stdout)


def records(run: Run) -> list[EpisodeRecord]:
    return [EpisodeRecord.model_validate(row) for row in read_jsonl(run.episodes)]


def settings(run: Run) -> TrainerSettings:
    return TrainerSettings.model_validate_json(run.trainer.read_text())


def test_one_comparison_with_every_agent_and_both_controls(compared: Compared) -> None:
    found = Comparison.model_validate_json((compared.out / "comparison.json").read_text())
    assert [row.label for row in found.agents] == ["s3", "search_r1", STRANGER]
    assert [row.label for row in found.controls] == ["s3, rewards shuffled", "s3, learning rate 0"]
    assert found.naive_rag is not None and found.naive_rag.n == VALIDATION
    assert all(row.after.n == VALIDATION for row in [*found.agents, *found.controls])
    assert all(row.moved > 0 for row in [*found.agents, found.controls[0]])
    assert found.controls[1].moved == 0
    assert found.sound
    assert len(found.pairs) == 3
    text = (compared.out / "comparison.md").read_text()
    assert all(label in text and label in compared.printed for label in ("s3", "search_r1", STRANGER))
    assert "<html" in (compared.out / "report.html").read_text()


def test_the_trainer_is_told_the_same_but_for_the_agent(compared: Compared) -> None:
    three = [settings(compared.runs[name]) for name in list(CLASSES)[:3]]
    texts = {one.model_dump_json(exclude=OWN) for one in three}
    assert len(texts) == 1
    assert [one.agent_class for one in three] == list(CLASSES.values())[:3]


def test_runs_at_once_share_nothing(compared: Compared) -> None:
    """Two were under way at any time: rollouts, agents, gateways, files and ports are each run's own."""
    played = {name: records(run) for name, run in compared.runs.items()}
    for name, found in played.items():
        assert len(found) == QUESTIONS * ROLLOUTS + 2 * VALIDATION
        assert {record.agent_class for record in found} == {CLASSES[name]}
        assert {record.state for record in found} == {"succeeded"}
        agents = {record.episode.agent for record in found if record.episode is not None}
        assert agents == (set() if CLASSES[name] == STRANGER else {name.partition("-")[0]})
        assert all(record.reward is not None for record in found)
    ids = [{record.rollout_id for record in found} for found in played.values()]
    assert all(one.isdisjoint(other) for one, other in combinations(ids, 2))
    spans = [(run.recipe.stat().st_mtime, run.summary.stat().st_mtime) for run in compared.runs.values()]
    assert any(a[0] < b[1] and b[0] < a[1] for a, b in combinations(spans, 2)), "no two runs were under way at once"
    assert len({settings(run).gateway_url for run in compared.runs.values()}) == len(CLASSES)
    sockets = [json.loads(run.sockets.read_text()) for run in compared.runs.values()]
    assert all(sockets)
    s3, search_r1 = ({row["port"] for row in rows} for rows in sockets[:2])
    assert s3.isdisjoint(search_r1)


def test_shuffled_rewards_are_others_and_validation_is_scored_truly(compared: Compared) -> None:
    found = records(compared.runs["s3-rewards-shuffled-seed0"])
    assert all(record.reward == record.accuracy for record in found if not record.is_train)
    assert {record.reward for record in found} <= {0.0, 1.0}


def test_the_same_command_again_trains_nothing(compared: Compared) -> None:
    before = {run.summary: run.summary.stat().st_mtime_ns for run in compared.runs.values()}
    done = subprocess.run(compared.command, cwd=ROOT, env=compared.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == compared.printed
    assert before == {path: path.stat().st_mtime_ns for path in before}
    other = subprocess.run([*compared.command, "trainer.learning_rate=0.5"], cwd=ROOT, capture_output=True, text=True)
    assert other.returncode != 0
    assert "holds a comparison with other agents, seeds or settings" in other.stderr
