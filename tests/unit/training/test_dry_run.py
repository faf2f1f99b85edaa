"""The dry run: a plan of every shipped recipe, on a machine that has nothing of the training stack."""

import subprocess
import sys
from pathlib import Path

import pytest

from s3_agent.recipe import EXAMPLES, load_recipe
from s3_agent.training.dry_run import make_plan
from s3_agent.training.twin import load_twin

ROOT = Path(__file__).parents[3]
SHIPPED = sorted(path.stem for path in EXAMPLES.glob("*/recipes/*.yaml"))
WITHOUT = """
import sys
for name in ("torch", "verl", "vllm", "ray", "agentlightning", "transformers", "tensordict", "numpy", "scipy"):
    sys.modules[name] = None  # importing it fails
from s3_agent.cli.main import main
sys.argv = ["s3-agent", *{arguments!r}]
main()
"""


def shown(*arguments: str) -> str:
    program = WITHOUT.format(arguments=["train", "--dry-run", *arguments])
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", SHIPPED)
def test_every_recipe_has_a_plan_without_gpu_and_stack(name: str, tmp_path: Path) -> None:
    told = shown("--recipe", name, f"runs={tmp_path / 'runs'}", f"prepared={tmp_path / 'prepared'}")
    assert f"{name}: processes" in told
    for part in ("retriever", "gateway", "workers", "trainer"):
        assert part in told
    assert "nothing was started" in told
    assert list(tmp_path.iterdir()) == [], "a plan writes nothing"


def test_the_plan_tells_the_memory_of_every_card_without_the_stack() -> None:
    told = shown("--recipe", "s3_8x40gb")
    for card in ("GPU 0,1,2,3,4,5: trainer", "GPU 6: retriever", "GPU 7: generator", "index 30.1 GiB"):
        assert card in told


def test_the_plan_has_one_table_of_the_limits_of_all_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    told = " ".join(shown("--recipe", "s3_8x40gb", "gateway.url=http://127.0.0.1:1", "gateway.policy_calls=96").split())
    for text in ("limits, for 512 rollouts at a time", "the retriever's queue", "open files", "claims 96 rollouts"):
        assert text in told


def test_the_plan_of_the_large_recipe() -> None:
    plan = make_plan(load_recipe("s3_8x40gb"))
    assert {process.name: process.gpus for process in plan.processes} == {
        "retriever": [6],
        "generator": [7],
        "gateway": [],
        "workers": [],
        "trainer": [0, 1, 2, 3, 4, 5],
    }
    assert [process.port for process in plan.processes] == [3000, 8000, 8181, None, None]
    assert {file.what: file.state for file in plan.files}["RAG cache"] == "missing"
    [generator] = [process for process in plan.processes if process.name == "generator"]
    assert "Qwen/Qwen2.5-14B-Instruct-GPTQ-Int4" in generator.command and "--max-model-len 8192" in generator.command


def test_steps_and_rollouts_are_told() -> None:
    told = shown("--recipe", "s3_8x40gb")
    assert "20 x 480 rollouts (120 questions x 4) = 9,600, 2 updates a step" in told
    assert "KL: 0.001 beside the policy's loss; verl gets 0.0005: Agent Lightning divides" in told
    assert "of all 2" in told


def test_updates_and_kl_are_those_that_verl_is_told() -> None:
    actor = "trainer.verl.actor_rollout_ref.actor"
    told = shown("--recipe", "s3_8x40gb", f"{actor}.ppo_mini_batch_size=30", f"{actor}.policy_loss.loss_mode=vanilla")
    assert "4 updates a step" in told
    assert "KL: 0.001 beside the policy's loss; verl gets 0.001\n" in told
    assert "KL:" not in shown("--recipe", "cpu"), "without a reference there is no distance"


def test_the_disk_space_is_told() -> None:
    parameters, adapters, gib = 7_615_616_512, 28 * 32 * 90_112, 1 << 30
    for name, each in (("s3_8x40gb", 12 * parameters), ("s3_lora_1x80gb", 2 * parameters + 12 * adapters)):
        told = shown("--recipe", name)
        assert f"2 checkpoints of {each / gib:.1f} GiB" in told
        assert f"the trained policy: {2 * parameters / gib:.1f} GiB" in told and "are free" in told
    assert f"2 checkpoints of {2 * 12 * parameters / gib:.1f} GiB" in shown(
        "--recipe", "s3_2x8x40gb", "trainer.verl.actor_rollout_ref.actor.fsdp_config.fsdp_size=6"
    ), "twelve ranks write sixths"


@pytest.mark.parametrize("name", [name for name in SHIPPED if name != "cpu"])
def test_a_twin_keeps_what_the_trainer_does(name: str) -> None:
    large, twin = load_recipe(name), load_twin(name)
    kept = {
        "rollouts_per_question",
        "kl_loss",
        "clip_low",
        "clip_high",
        "temperature",
        "offload",
        "fused_log_probs",
        "checkpoints_kept",
        "checkpoint_policy",
        "max_updates",
        "trackers",
    }
    assert twin.trainer.model_dump(include=kept) == large.trainer.model_dump(include=kept)
    ratios = [recipe.trainer.questions_per_step // recipe.trainer.mini_batch for recipe in (large, twin)]
    assert ratios[0] == ratios[1]
    assert (twin.trainer.tokens_per_gpu is None) is (large.trainer.tokens_per_gpu is None)
    assert (twin.agent.name, twin.agent.reward) == (large.agent.name, large.agent.reward)
    assert twin.trainer.device == "cpu" and not twin.gpus.placed
