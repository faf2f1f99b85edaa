"""From the wheel to a trained policy, as a stranger does it: install, `s3-agent setup`, `s3-agent train`, ask."""

import json
from pathlib import Path

import pytest

from tests.installed_wheel import Installation, build_wheel, install

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3600)]
PORTS = ("retriever.port=0", "generator.port=0", "gateway.port=0")
QUESTION = "What is the capital of the country where the city Graz is located?"


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """An environment that `s3-agent setup` has added the training stack to."""
    folder = tmp_path_factory.mktemp("stranger")
    installation = install(build_wheel(folder), folder)
    done = installation.run("s3-agent", "setup", "--cpu", timeout_s=1800)
    assert done.returncode == 0, done.stderr[-6000:]
    return installation


def test_two_commands_lead_from_the_wheel_to_a_policy_that_answers(stranger: Installation) -> None:
    small = ("trainer.steps=1", "data.validation_size=8")
    done = stranger.run("s3-agent", "train", "--name", "one", *PORTS, *small, timeout_s=1200)
    assert done.returncode == 0, done.stderr[-6000:]
    summary = json.loads((stranger.folder / "runs/one/summary.json").read_text())
    assert (summary["steps"], summary["lost_rollouts"], summary["val_n"]) == (1, 0, 8)
    assert (stranger.folder / "runs/one/policy/model.safetensors").is_file()
    asked = stranger.run("s3-agent", "ask", QUESTION, "--json", *PORTS, timeout_s=600)
    assert asked.returncode == 0, asked.stderr[-3000:]
    answer = json.loads(asked.stdout)
    assert answer["question"] == QUESTION and answer["answer"]


def test_set_up_again_changes_nothing(stranger: Installation) -> None:
    done = stranger.run("s3-agent", "setup", "--cpu", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stdout.splitlines() if line.startswith((" - ", " + "))]


def test_a_folder_of_ones_own_trains_its_own_class(stranger: Installation) -> None:
    assert stranger.run("s3-agent", "init", "mine").returncode == 0
    mine: Path = stranger.folder / "mine"
    for command in (
        ("data", "import", "--corpus", "documents", "--questions", "questions.jsonl", "--into", "data"),
        ("data", "all", *PORTS),
        ("train", "--name", "mine", *PORTS),
    ):
        done = stranger.run("s3-agent", *command, "--recipe", "recipe.yaml", folder=mine, timeout_s=1200)
        assert done.returncode == 0, (command, done.stderr[-6000:])
    summary = json.loads((mine / "runs/mine/summary.json").read_text())
    assert (summary["steps"], summary["lost_rollouts"]) == (2, 0)
    episodes = [json.loads(line) for line in (mine / "runs/mine/episodes.jsonl").read_text().splitlines()]
    assert {episode["agent_class"] for episode in episodes} == {"my_agent:OneLook"}
