"""The memory plan against torch's memory tracker: the CPU twin's trainer and the GPU recipes traced without data."""

import pytest

from benchmarks.memory_plan import large, twin

# Rows of 192 tokens: verl's log-probs on the CPU are a loop over tokens, which the tracker makes slow.
SHORT = ("trainer.prompt_tokens=64", "trainer.response_tokens=128", "agent.limits.max_context_tokens=128")


ENTROPY = "trainer.verl.actor_rollout_ref.actor.calculate_entropy"
PADDED = "trainer.verl.actor_rollout_ref.model.use_remove_padding=false"


@pytest.mark.parametrize("entropy", ["true", "false"])
def test_the_cpu_twins_trainer_needs_what_the_plan_says(entropy: str) -> None:
    measured = twin(2, *SHORT, PADDED, f"{ENTROPY}={entropy}")
    for part in ("weights", "gradients", "optimizer"):
        assert measured[part]["ratio"] == 1.0, part
    for part in ("activations_peak", "training_peak"):
        assert measured[part]["ratio"] == pytest.approx(1.0, abs=0.15), part


def test_packed_rows_on_a_cpu_need_no_more_than_the_plan_says() -> None:
    """Their log-probs are computed without the copies that padded rows have; the plan has the larger of both."""
    measured = twin(2, *SHORT, f"{ENTROPY}=true")
    assert 0.5 <= measured["training_peak"]["ratio"] <= 1.15


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("recipe", "model"), [("s3_8x40gb", "Qwen/Qwen2.5-7B-Instruct"), ("s3_3b_8x40gb", "Qwen/Qwen2.5-3B-Instruct")]
)
def test_a_gpu_recipes_activations_are_what_the_plan_says(recipe: str, model: str) -> None:
    assert large(recipe, model)["activations_peak"]["ratio"] == pytest.approx(1.0, abs=0.15)
