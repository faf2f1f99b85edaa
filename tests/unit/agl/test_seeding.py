"""Seeded rollouts: the same run seeds the same again, siblings differ, and the seed reaches the policy's requests."""

import pytest

pytest.importorskip("agentlightning")

from agentlightning.hooks import load_hooks
from agentlightning.schemas import RolloutCreate

from s3_agent.agl.run_files import SEED_VARIABLE
from s3_agent.agl.verl_config import HOOKS, TrainerSettings, environment, trainer_config
from s3_agent.clients.gateway import Rollout
from s3_agent.clients.policy import seed_of


def seeds(*questions: str, is_train: bool = True) -> list[int | None]:
    """Of rollouts in this order, by Agent Lightning's own loader of hooks."""
    hooks = load_hooks(str(HOOKS))
    hooks.on_startup()
    found = []
    for question in questions:
        request = RolloutCreate(input={"question": question}, is_train=is_train, metadata={"batch_idx": 3})
        seeded = hooks.on_enqueue(request).model_dump(mode="json", exclude_none=True)
        assert seeded["metadata"]["batch_idx"] == 3
        found.append(
            Rollout.model_validate(
                {"rollout_id": "r", "status": {"state": "queuing"}, "input": 1, "metadata": seeded["metadata"]}
            ).metadata.seed
        )
    return found


@pytest.fixture(autouse=True)
def seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SEED_VARIABLE, "0")


def test_siblings_and_questions_have_seeds_of_their_own() -> None:
    found = seeds("a", "a", "b", "a")
    assert len(set(found)) == 4
    assert all(seed is not None and 0 <= seed < 1 << 31 for seed in found)


def test_a_seed_depends_on_the_question_and_its_number_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    first = dict(zip("aabc", seeds("a", "a", "b", "c"), strict=True))
    assert dict(zip("cbaa", seeds("c", "b", "a", "a"), strict=True)) == first
    monkeypatch.setenv(SEED_VARIABLE, "1")
    assert not set(seeds("a", "a", "b", "c")) & set(first.values())


def test_validation_is_greedy_and_has_none() -> None:
    assert seeds("a", is_train=False) == [None]


def test_requests_of_one_rollout_have_seeds_of_their_own() -> None:
    assert seed_of(7, [1, 2]) != seed_of(7, [1, 2, 3]) != seed_of(8, [1, 2, 3])


@pytest.mark.parametrize("seeded", [True, False])
def test_a_recipe_chooses(seeded: bool) -> None:
    settings = TrainerSettings(
        run="x", model="m", gateway_url="http://127.0.0.1:1", checkpoints=HOOKS.parent, validation_size=1,
        seeded=seeded, seed=5,
    )  # fmt: skip
    config = trainer_config(settings, gateway_key="")
    assert config.agentlightning.hooks == (str(HOOKS) if seeded else None)
    assert environment(settings).get(SEED_VARIABLE) == ("5" if seeded else None)
