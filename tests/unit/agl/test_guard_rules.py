"""The guard's rules, on metrics of healthy runs and of such that lose what they learned."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from s3_agent.agl.guard import Guard, best_of, tripped
from s3_agent.agl.verl_config import TrainerRecipe

HEALTHY = {
    "training/n_sample": 64,
    "training/reward": 0.5,
    "actor/grad_norm": 0.2,
    "s3/train/invalid_actions": 0.05,
    "s3/train/at_search_limit": 0.9,
}


def rows(*steps: dict[str, Any], validations: dict[int, float] | None = None) -> list[dict[str, Any]]:
    """A validation before the first step, then steps, each HEALTHY but for what is given."""
    found: list[dict[str, Any]] = [{"step": 0, "data": {}}]
    found += [{"step": number, "data": {**HEALTHY, **step}} for number, step in enumerate(steps, 1)]
    for number, accuracy in (validations or {0: 0.5}).items():
        found[number]["data"]["s3/val/accuracy"] = accuracy
    return found


def test_a_healthy_run_goes_to_its_end() -> None:
    steps = rows(*[{}] * 9, validations={0: 0.5, 3: 0.44, 6: 0.6, 9: 0.52})
    assert [tripped(Guard(), steps[:end]) for end in range(len(steps) + 1)] == [None] * 11


def test_validations_below_the_best_count_in_a_row() -> None:
    falling = rows(*[{}] * 4, validations={0: 0.3, 1: 0.6, 2: 0.5, 3: 0.55, 4: 0.5})
    assert all(tripped(Guard(validations=2), falling[:end]) is None for end in range(6))
    falling.append({"step": 5, "data": {**HEALTHY, "s3/val/accuracy": 0.4}})
    assert tripped(Guard(validations=2), falling) == (
        "validation was 0.400 after step 5, 2 times in a row more than 0.07 below the best (0.600 after step 1)"
    )
    assert tripped(Guard(validations=3), falling) is None
    assert tripped(Guard(below_best=None), falling) is None


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"s3/train/invalid_actions": 0.6}, "held no action"),
        ({"training/reward": 0.1}, "the reward was below"),
        ({"actor/grad_norm": 11.0}, "the gradient norm"),
        ({"actor/grad_norm": None}, "the gradient norm"),
        ({"actor/grad_norm": float("nan")}, "the gradient norm"),
    ],
)
def test_steps_out_of_bounds_count_in_a_row(step: dict[str, Any], words: str) -> None:
    assert tripped(Guard(), rows(*[{}] * 5, step, step)) is None
    assert tripped(Guard(), rows(*[{}] * 5, step, {}, step, step)) is None
    reason = tripped(Guard(), rows(*[{}] * 5, step, step, step))
    assert reason is not None and words in reason and "until step 8" in reason
    assert tripped(Guard(action="off"), rows(*[{}] * 5, step, step, step)) is None


def test_failed_rollouts_are_no_fall_of_the_reward() -> None:
    """The trainer counts them as 0; a retriever that is away for three steps is not a collapse."""
    away = {"training/reward": 0.05, "s3/train/reward": 0.5}
    assert tripped(Guard(), rows(*[{"s3/train/reward": 0.5}] * 3, away, away, away)) is None


def test_searching_to_the_limit_is_a_rule_only_if_asked_for() -> None:
    steps = rows(*[{"s3/train/at_search_limit": 1.0}] * 5)
    assert tripped(Guard(), steps) is None
    assert "used all their searches" in (tripped(Guard(searches_at_limit=0.95), steps) or "")


@given(st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=8), st.integers(1, 3))
def test_validation_trips_exactly_when_the_last_ones_are_below_the_best(
    results: list[float | None], validations: int
) -> None:
    steps = [{"step": n, "data": {} if r is None else {"s3/val/accuracy": r}} for n, r in enumerate(results)]
    known = [(n, r) for n, r in enumerate(results) if r is not None]
    best = max((r for _, r in known), default=0.0)
    first = next((n for n, r in known if r == best), None)
    assert best_of(steps) == (None if first is None else (first, best))
    after = [r for n, r in known if first is not None and n > first]
    expected = results[-1] is not None and len(after) >= validations
    expected = expected and all(best - r > 0.07 for r in after[-validations:])
    assert (tripped(Guard(validations=validations), steps) is not None) == expected


def test_stopping_needs_a_checkpoint_of_every_validation() -> None:
    stop = Guard(action="stop")
    with pytest.raises(ValidationError, match="set validate_every, and leave checkpoint_every out"):
        TrainerRecipe(guard=stop)
    with pytest.raises(ValidationError, match="set validate_every, and leave checkpoint_every out"):
        TrainerRecipe(guard=stop, validate_every=3, checkpoint_every=2)
    trainer = TrainerRecipe(steps=12, guard=stop, validate_every=4)
    assert (trainer.steps_per_checkpoint, trainer.most_checkpoints) == (4, 3)
    assert trainer.model_copy(update={"checkpoint_every": 2}).steps_per_checkpoint == 2
    assert TrainerRecipe(steps=12, validate_every=4).steps_per_checkpoint == 12


def test_llds_needs_several_updates_a_step() -> None:
    with pytest.raises(ValidationError, match="set questions_per_update to a quarter"):
        TrainerRecipe.model_validate({"llds": {}})
    with pytest.raises(ValidationError, match="a step makes no other"):
        TrainerRecipe.model_validate({"llds": {}, "questions_per_update": 4, "max_updates": 1})
    assert TrainerRecipe.model_validate({"llds": {}, "questions_per_update": 2}).llds is not None


def test_a_policy_that_has_still_to_learn_the_format_has_not_lost_it() -> None:
    def step(number: int, invalid: float, *, split: str = "train") -> dict[str, Any]:
        trained = {"training/n_sample": 4, "actor/grad_norm": 0.2} if split == "train" else {}
        return {"step": number, "data": {f"s3/{split}/invalid_actions": invalid, **trained}}

    learning = [step(number, 0.9) for number in range(1, 6)]
    assert tripped(Guard(), learning) is None
    assert "held no action" in str(tripped(Guard(), [step(0, 0.2, split="val"), *learning]))
    assert "held no action" in str(tripped(Guard(), [*learning, step(6, 0.3), *(step(n, 0.8) for n in (7, 8, 9))]))
