"""LoRA's settings, and the sum of a weight and its adapter."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from pydantic import ValidationError

from s3_agent.agl.lora import Lora
from s3_agent.agl.lora_weights import adapters_of, with_adapter
from s3_agent.agl.verl_config import TrainerRecipe, TrainerSettings, trainer_config
from s3_agent.errors import ConfigError
from s3_agent.recipe import load_recipe

STRATEGY = {"actor_rollout_ref": {"actor": {"strategy": "fsdp"}}}


def composed(**changes: Any) -> Any:
    made = {"run": "x", "model": "m", "gateway_url": "http://127.0.0.1:1", "checkpoints": Path("c"), "seed": 11}
    return trainer_config(
        TrainerSettings(**made, validation_size=1, checkpoint_policy=False, **changes), gateway_key=""
    )


def test_without_lora_nothing_of_it_is_set() -> None:
    """verl's own values, and so the configuration of a run that trains all weights is what it was."""
    config = composed()
    assert (config.actor_rollout_ref.model.lora_rank, config.actor_rollout_ref.model.lora.merge) == (0, False)
    assert config.actor_rollout_ref.actor.fsdp_config.model_dtype == "fp32"


def test_its_settings_land_where_verl_reads_them() -> None:
    plain, config = composed(), composed(lora=Lora(rank=8, alpha=24, targets=("q_proj", "v_proj")))
    model, engine = config.actor_rollout_ref.model, config.actor_rollout_ref.actor.fsdp_config
    assert (model.lora_rank, model.lora_alpha, model.target_modules) == (8, 24, ["q_proj", "v_proj"])
    assert model.lora.merge and engine.model_dtype == "bf16" and engine.seed == 11
    assert composed(lora=Lora()).actor_rollout_ref.model.target_modules == "all-linear"
    for path, value in {
        "model.lora_rank": 0,
        "model.lora_alpha": plain.actor_rollout_ref.model.lora_alpha,
        "model.target_modules": plain.actor_rollout_ref.model.target_modules,
        "model.lora.merge": False,
        "actor.fsdp_config.model_dtype": "fp32",
        "actor.fsdp_config.seed": 42,
    }.items():
        OmegaConf.update(config, f"actor_rollout_ref.{path}", value)
    assert OmegaConf.to_yaml(config) == OmegaConf.to_yaml(plain), "and nothing else changes"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lora": {"targets": ["q_proj", "lm_head"]}}, "lm_head can have no adapter"),
        ({"lora": {"targets": ["model.embed_tokens"]}}, "embed_tokens can have no adapter"),
        ({"lora": {"targets": []}}, "at least 1"),
        ({"lora": {"rank": 0}}, "greater than or equal to 1"),
        ({"lora": {"rank": 1024}}, "less than or equal to 512"),
        ({"lora": {"dropout": 0.1}}, "Extra inputs"),
        ({"lora": {}, "checkpoint_policy": True}, "set checkpoint_policy=false"),
        ({"lora": {}, "verl": STRATEGY}, "lora needs FSDP2"),
    ],
)
def test_what_does_not_work_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        TrainerRecipe.model_validate({"checkpoint_policy": False, **changes})


def test_verls_own_keys_name_the_field() -> None:
    with pytest.raises(ConfigError, match=r"lora_rank can not be set: .* set trainer\.lora"):
        load_recipe("cpu", ["trainer.verl.actor_rollout_ref.model.lora_rank=8"])


def state(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    adapter = {f"{name}.lora_{side}.default.weight": value for side, value in (("A", a), ("B", b))}
    return {f"{name}.base_layer.weight": weight, f"{name}.base_layer.bias": weight[:, 0], **adapter}


@given(rank=st.integers(1, 4), rows=st.integers(1, 5), columns=st.integers(1, 5), seed=st.integers(0, 99))
def test_the_sum_is_that_of_a_computation_by_hand(rank: int, rows: int, columns: int, seed: int) -> None:
    drawn = torch.Generator().manual_seed(seed)
    shapes = ((rows, columns), (rank, columns), (rows, rank))
    weight, a, b = (torch.randn(*shape, generator=drawn).bfloat16() for shape in shapes)
    [(name, (found_a, found_b))] = adapters_of(state(weight, a.float(), b.float())).items()
    assert name.endswith("q_proj.base_layer.weight")
    by_hand = [
        [float(weight[i, j]) + 2.0 * sum(float(b[i, k]) * float(a[k, j]) for k in range(rank)) for j in range(columns)]
        for i in range(rows)
    ]
    found = with_adapter(weight, found_a, found_b, 2.0)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.double(), torch.tensor(by_hand).double(), rtol=2**-7, atol=1e-5)
    assert torch.equal(with_adapter(weight, a, torch.zeros_like(b), 2.0), weight), "an adapter starts without effect"
