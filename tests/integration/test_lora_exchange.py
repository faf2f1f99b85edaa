"""LoRA by verl's own engine on two ranks, from the exchange with the policy server to both exported forms."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from s3_agent.embedded import NANO_POLICY
from s3_agent.errors import S3AgentError
from s3_agent.processes.run_folder import Run
from s3_agent.training.export import export_policy
from s3_agent.training.resume import is_whole
from tests.integration.lora_ranks import IDS
from tests.ranks import run_ranks

pytestmark = pytest.mark.timeout(300)

RANKS = Path(__file__).with_name("lora_ranks.py")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with one checkpoint, of two ranks."""
    run = Run(tmp_path_factory.mktemp("lora") / "run")
    run.create()
    run.trainer.write_text(json.dumps({"model": str(NANO_POLICY)}))
    run.metrics.write_text('{"step": 1, "data": {"actor/grad_norm": 1.0}}\n')
    return run


@pytest.fixture(scope="module")
def told(run: Run, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank printed."""
    folder = run.checkpoints / "global_step_1"
    folder.mkdir(parents=True)
    store = tmp_path_factory.mktemp("store") / "store"
    ends = run_ranks(RANKS, store, str(folder), within_s=250)
    assert [done.returncode for done in ends] == [0, 0], ends[0].stderr[-3000:]
    torch.save({}, folder / "data.pt")
    return [json.loads(done.stdout.splitlines()[-1]) for done in ends]


@pytest.fixture(scope="module")
def exported(run: Run, told: list[dict[str, Any]]) -> Path:
    assert export_policy(run, run.policy).note == ""
    return run.policy


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0].float()


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_only_adapters_are_trained_and_the_reference_is_the_policy_without_them(told: list[dict[str, Any]]) -> None:
    for rank in told:
        assert rank["frozen"] and rank["trained"] == rank["adapters"] == rank["moments"] == 42
        assert rank["adapter_dtypes"] == ["torch.float32"]
        assert rank["reference"] == 0.0
        assert rank["unchanged_by_the_exchange"]


def test_a_new_engine_continues_from_a_checkpoint(run: Run, told: list[dict[str, Any]]) -> None:
    assert all(rank["resumed"] for rank in told)
    assert is_whole(run.checkpoints / "global_step_1"), "as the guard and --resume see it"


def test_the_policy_server_gets_what_was_trained(run: Run, exported: Path, told: list[dict[str, Any]]) -> None:
    """Tensor by tensor the weights of the exported policy, and nearly the trainer's logits."""
    folder = run.checkpoints / "global_step_1"
    sent, policy = load_file(folder / "sent.safetensors"), load_file(exported / "model.safetensors")
    assert told[0]["adapter"] is None and sent.keys() == policy.keys()
    assert all(torch.equal(sent[name], policy[name]) for name in sent)
    trained, start = load_file(folder / "logits.safetensors")["logits"], logits(loaded(NANO_POLICY))
    moved = (trained - start).abs().max()
    assert moved > 1.0 and (logits(loaded(exported)) - trained).abs().max() < 0.05 * moved


def test_without_our_exchange_verl_sends_the_untrained_weights(told: list[dict[str, Any]]) -> None:
    """That there is still something to fix."""
    assert {rank["verl_sends"] for rank in told} == {0.0}


def test_the_adapter_beside_the_policy_gives_the_same_logits(exported: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    adapter = exported / "lora_adapter"
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(NANO_POLICY) and config["r"] == 8 and config["lora_alpha"] == 16
    apart, merged = logits(AutoPeftModelForCausalLM.from_pretrained(adapter, dtype=torch.float32)), loaded(exported)
    moved = (apart - logits(loaded(NANO_POLICY))).abs().max()
    assert (apart - logits(merged)).abs().max() < 0.05 * moved, "they differ as rounded weights do"


def test_a_checkpoint_without_its_scale_is_not_exported(run: Run, exported: Path, tmp_path: Path) -> None:
    meta = run.checkpoints / "global_step_1" / "actor" / "lora_train_meta.json"
    aside = meta.rename(tmp_path / "meta.json")
    try:
        with pytest.raises(S3AgentError, match=r"lora_train_meta\.json"):
            export_policy(run, tmp_path / "out")
    finally:
        aside.rename(meta)
    assert not [*tmp_path.glob("out*")]
