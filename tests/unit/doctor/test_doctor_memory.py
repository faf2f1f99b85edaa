"""The memory plan against published sizes, against transformers' own models, and against torch's memory tracker."""

from dataclasses import replace
from typing import Any

import pytest

from retrieval_server.backends.dense.kind import index_bytes
from retrieval_server.backends.dense.settings import DenseSettings, EncoderSettings
from s3_agent.agl.verl_config import settings_alone
from s3_agent.doctor.checks.memory import plans, ram_items
from s3_agent.doctor.memory import as_rows, as_text
from s3_agent.doctor.trainer_memory import state_bytes
from s3_agent.doctor.training import read_training
from s3_agent.machine.description import GIB, described
from s3_agent.machine.model_files import PUBLISHED, from_config
from s3_agent.shipped import shipped_recipes
from tests.doctor_cases import settings, sound, training

GB = 10**9


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("Qwen/Qwen2.5-3B-Instruct", 3_085_938_688),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
        ("Qwen/Qwen2.5-14B-Instruct", 14_770_033_664),
        ("meta-llama/Llama-3.2-3B-Instruct", 3_212_749_824),
    ],
)
def test_published_parameter_counts(model: str, parameters: int) -> None:
    shape = PUBLISHED[model]
    assert shape.parameters == parameters
    assert shape.weight_bytes() == 2 * parameters


def test_published_sizes() -> None:
    assert PUBLISHED["Qwen/Qwen2.5-7B-Instruct"].weight_bytes() / GB == pytest.approx(15.2, abs=0.05)
    assert PUBLISHED["Qwen/Qwen2.5-14B-Instruct-GPTQ-Int4"].weight_bytes() / GB == pytest.approx(10.0, abs=0.1)
    flat = DenseSettings(encoder=EncoderSettings.e5(), engine="torch", torch_dtype="float16")
    assert index_bytes(flat, passages=21_015_324, dimension=768, cards=1) / GIB == pytest.approx(30.1, abs=0.05)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_transformers_models(kind: str, tied: bool) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "intermediate_size": 96,
        "vocab_size": 320,
        "max_position_embeddings": 128,
        "tie_word_embeddings": tied,
    }
    if kind == "qwen2":
        sizes.pop("head_dim")
    config = AutoConfig.for_model(kind, **sizes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = from_config(config.to_dict(), source="test")
    assert shape is not None
    assert shape.parameters == model.num_parameters()


def test_adapters_are_those_of_peft() -> None:
    """The number of their parameters, and that only they have gradients and moments."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    case = training("s3_lora_1x24gb")
    sizes: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 96, "vocab_size": 320}
    config = AutoConfig.for_model("qwen2", **sizes, num_attention_heads=4, num_key_value_heads=2)
    with torch.device("meta"):
        adapters = LoraConfig(r=case.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(AutoModelForCausalLM.from_config(config), adapters)
    trained, _ = model.get_nb_trainable_parameters()
    shape = from_config(config.to_dict(), source="test")
    assert shape is not None
    assert state_bytes(shape, case) == {
        "weights": 2 * shape.parameters + 4 * trained,
        "gradients": 4 * trained,
        "optimizer": 8 * trained,
    }


def test_models_of_another_kind_have_no_shape() -> None:
    assert from_config({"model_type": "mixtral"}, source="test") is None


def test_offloading_frees_the_sampling_phase_and_not_the_training_phase() -> None:
    kept, offloaded = (
        {phase.name: phase.size for phase in plans(sound("s3_8x40gb", f"trainer.offload={on}"))[0].phases}
        for on in ("false", "true")
    )
    assert kept["sampling"] - offloaded["sampling"] == pytest.approx(12 * 7_615_616_512 / 6, rel=1e-6)
    assert kept["training"] == offloaded["training"]


def test_the_plan_is_told_by_gpu_and_as_rows() -> None:
    case = replace(sound(), machine=described("8x40gb"))
    found = plans(case)
    assert [(plan.part, plan.indexes) for plan in found] == [
        ("trainer", (0, 1, 2, 3, 4, 5)),
        ("generator", (7,)),
        ("retriever", (6,)),
    ]
    text = as_text(found)
    assert "GPU 0,1,2,3,4,5: trainer" in text
    assert "index 30.1 GiB" in text
    assert all(row["fits"] and row["peak"] == max(phase["size"] for phase in row["phases"]) for row in as_rows(found))


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_without_verl_the_same_is_read_from_the_settings_alone(name: str) -> None:
    assert read_training(settings_alone(settings(name))) == training(name)


def test_a_node_holds_the_shards_of_its_own_ranks() -> None:
    one, two = ram_items(sound("s3_8x40gb")), ram_items(sound("s3_2x8x40gb", "ray.address=10.0.0.1:6379"))
    shape = sound().shape("policy")
    assert shape is not None
    for name, times in (("offloaded weights", 1), ("offloaded optimizer", 2), ("reference policy", 1)):
        assert one[name] == 2 * two[name] == 4 * times * shape.parameters
    copies = "trainer.verl.actor_rollout_ref.actor.fsdp_config.fsdp_size=3"
    assert ram_items(sound("s3_8x40gb", copies))["offloaded weights"] == 2 * one["offloaded weights"]
