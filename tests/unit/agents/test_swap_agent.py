"""One recipe, another agent: what changes, what each rollout says of its player, and the options around."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from s3_agent.agl.one_task import OneTaskSettings
from s3_agent.clients.tokenizer import load_tokenizer
from s3_agent.embedded import NANO_POLICY, NANO_SEARCH_R1
from s3_agent.errors import ConfigError
from s3_agent.processes.parts import training_parts
from s3_agent.processes.run_folder import Run
from s3_agent.recipe import load_recipe, require_trainable
from s3_agent.rollout.jobs import Job
from s3_agent.rollout.runner import AgentSettings, run_task
from s3_agent.rollout.worker import controls
from s3_agent.rollout.worker.native import Played, RecipeAgent
from s3_agent.testing.fakes import FakeGenerator, FakePolicy, FakeRetriever
from s3_agent.training.agent_environment import agent_class_of, env_map_of
from s3_agent.training.weights import largest_change
from s3_agent.types import Passage, Task

STRANGER = "one_look_agent:OneLook"
CHANGED = {"agent", "policy", "local"}


@pytest.mark.parametrize("label", ["s3", "search_r1", STRANGER])
def test_the_agent_changes_and_nothing_else(label: str) -> None:
    recipe = load_recipe("cpu")
    other = recipe.of_agent(label)
    assert recipe.model_dump(exclude=CHANGED) == other.model_dump(exclude=CHANGED)
    require_trainable(other)


def test_each_agent_begins_with_its_own_policy() -> None:
    recipe = load_recipe("cpu")
    models = [Path(recipe.of_agent(label).policy.model) for label in ("s3", "search_r1", STRANGER)]
    assert models == [NANO_POLICY, NANO_SEARCH_R1, NANO_POLICY]


def test_a_class_takes_its_agents_place_and_gives_it_back() -> None:
    stranger = load_recipe("cpu").of_agent(STRANGER)
    assert agent_class_of(stranger) == STRANGER
    assert stranger.asks_generator
    assert agent_class_of(stranger.of_agent("search_r1")) == "s3_agent.agl.entry:SearchR1Agent"


@pytest.mark.parametrize(
    ("label", "message"), [("s4", "there is no agent 's4'"), ("rag", "can not be trained"), (":", "is not valid")]
)
def test_a_label_that_is_no_agent_is_refused(label: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        require_trainable(load_recipe("cpu").of_agent(label))


@pytest.mark.parametrize("label", ["s3", "search_r1"])
def test_the_stock_controller_plays_what_the_recipe_says(label: str, tmp_path: Path) -> None:
    """Our own class makes the recipe's settings again out of the environment that goes with each rollout."""
    recipe = load_recipe("cpu").of_agent(label)
    environment = env_map_of(recipe, Run(tmp_path))
    assert environment.pop("S3_AGENT_TASK") == "input"
    read = OneTaskSettings.from_environment(environment, agent=recipe.agent.name)
    assert read.agent == recipe.agent
    assert read.policy_tokenizer == recipe.policy.model
    patience = {"patience_s": read.patience_s}
    assert read.generator == recipe.generator.client.model_copy(update=patience)
    assert read.judge == recipe.judge.model_copy(update=patience)


def test_the_recipes_own_variables_come_last_and_no_key_is_among_them(tmp_path: Path) -> None:
    recipe = load_recipe(
        "cpu", ["local.env_map.S3_AGENT_TASK=input.question", "gateway.url=http://g", "gateway.key=KEY"]
    )
    environment = env_map_of(recipe, Run(tmp_path))
    assert environment["S3_AGENT_TASK"] == "input.question"
    assert "KEY" not in json.dumps(environment)


def test_an_external_controller_takes_the_pools_place(tmp_path: Path) -> None:
    ours, theirs = load_recipe("cpu"), load_recipe("cpu", ["workers.external=true"])
    run = Run(tmp_path)
    names = [[part.name for part in training_parts(recipe, run, key="k")] for recipe in (ours, theirs)]
    assert names == [["gateway", "workers", "trainer"], ["gateway", "trainer"]]
    assert training_parts(theirs, run, key="k")[-1].needs == ("gateway", "retriever", "generator")
    assert "S3_AGENT_EPISODES" not in env_map_of(ours, run)
    assert env_map_of(theirs, run)["S3_AGENT_EPISODES"] == str(run.episodes.absolute())


@pytest.mark.parametrize(("cost", "reward"), [(0.0, 1.0), (0.125, 0.875)])
async def test_a_search_costs_what_the_recipe_says_and_accuracy_stays(cost: float, reward: float) -> None:
    answers = iter(["<search> x </search>", "<answer> Euro </answer>"])
    settings = AgentSettings.model_validate({"name": "search_r1", "prompt": "compact", "search_cost": cost})
    outcome = await run_task(
        Task(id="1", question="q", golden_answers=("Euro",)),
        settings,
        policy=FakePolicy(lambda _: next(answers), load_tokenizer(str(NANO_SEARCH_R1))),
        retriever=FakeRetriever(default=[Passage(id="1", title="t", text="Euro")]),
        generator=FakeGenerator(lambda *_: ""),
    )
    assert outcome.episode.searches == 1
    assert outcome.reward.value == reward
    assert outcome.reward.metrics["accuracy"] == 1.0


def test_shuffled_rewards_are_others_in_training_and_true_in_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(self: Any, job: Job) -> Played:
        return Played(reward=job.input, record={"accuracy": job.input})

    monkeypatch.setattr(RecipeAgent, "__init__", lambda *_: None)
    monkeypatch.setattr(RecipeAgent, "play", play)
    agent = controls.ShuffledRewards(None)  # pyright: ignore[reportArgumentType]

    def played(number: int, *, train: bool) -> Played:
        value = float(number)
        job = Job.model_construct(rollout_id="r", attempt_id="a", is_train=train, input=value)
        return asyncio.run(agent.play(job))

    found = [played(number, train=True) for number in range(2, 500)]
    assert all(one.reward != one.record["accuracy"] for one in found)
    assert all(one.record["accuracy"] - one.reward <= controls.KEPT for one in found[controls.KEPT :])
    assert len({one.reward for one in found}) > 100
    assert played(7, train=False).reward == 7.0


def test_how_far_a_policy_has_moved(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    assert largest_change(str(NANO_POLICY), NANO_POLICY) == 0.0
    weights = load_file(NANO_POLICY / "model.safetensors")
    name = next(iter(weights))
    moved = {key: value.float() for key, value in weights.items()}
    moved[name].view(-1)[3] += 0.25
    save_file(moved, tmp_path / "model.safetensors")
    assert largest_change(str(NANO_POLICY), tmp_path) == pytest.approx(0.25)
    save_file({"other": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"1 unexpected \(other\)"):
        largest_change(str(NANO_POLICY), tmp_path)
