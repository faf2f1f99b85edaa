"""The memory plan against torch's memory tracker: the CPU twin's trainer and the GPU recipes traced without data."""

from dataclasses import replace

import pytest

from benchmarks.memory_plan import large, twin
from s3_agent.doctor.activations import logits_bytes
from s3_agent.machine.model_files import PUBLISHED
from tests.doctor_cases import training

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


@pytest.mark.parametrize("entropy", [True, False])
@pytest.mark.parametrize("backward", [True, False])
def test_fused_log_probs_need_what_the_plan_says(entropy: bool, backward: bool) -> None:
    """verl's own, over tensors without data; several chunks of tokens, and a large vocabulary beside few numbers."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker
    from verl.utils.experimental.torch_functional import FusedLinearForPPO

    shape = replace(PUBLISHED["Qwen/Qwen2.5-3B-Instruct"], hidden=64)
    with FakeTensorMode():
        hidden, weights = (torch.ones(n, 64, dtype=torch.bfloat16, requires_grad=True) for n in (1536, shape.vocab))
        tracker = MemTracker()
        with tracker:
            log_probs, made = FusedLinearForPPO()(hidden, weights, torch.zeros(1536, dtype=torch.long))
            if backward:
                (log_probs.sum() - (0 * made.sum() if entropy else 0)).backward()
        measured = max(snapshot["Total"] for snapshot in tracker.get_tracker_snapshot("peak").values())
    how = replace(training("s3_3b_8x40gb"), fused=True, entropy=entropy)
    planned = logits_bytes(shape, 1536, how, width=2, backward=backward)
    assert planned == pytest.approx(measured, rel=0.1)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("recipe", "model"),
    [
        ("s3_8x40gb", "Qwen/Qwen2.5-7B-Instruct"),
        ("s3_3b_8x40gb", "Qwen/Qwen2.5-3B-Instruct"),
        ("s3_lora_1x24gb", "Qwen/Qwen2.5-3B-Instruct"),
    ],
)
def test_a_gpu_recipes_activations_are_what_the_plan_says(recipe: str, model: str) -> None:
    assert large(recipe, model)["activations_peak"]["ratio"] == pytest.approx(1.0, abs=0.15)
