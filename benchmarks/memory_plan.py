"""Compares the memory plan with what torch's memory tracker measures for the same operations. Prints one JSON object.

    python benchmarks/memory_plan.py [--rows 2] [--large]

`twin`: the CPU twin's trainer, the embedded nano policy in fp32 with verl's own code around the model (inputs, entropy,
log-probs), one micro batch of `--rows` of the longest rows of the recipe `cpu`, backward and AdamW; every tensor is
real. `--large` traces a 3B and a 7B policy in bfloat16 with gradient checkpointing and verl's fused log-probs, as the
GPU recipes have them, and once with LoRA: the same operations over tensors without data, which need no memory and no
GPU. Neither measures allocations inside a kernel, the allocator's fragmentation, or FSDP's gathering and buffers.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, patch

import typer

from s3_agent.agl.verl_config import TrainerSettings, trainer_config
from s3_agent.doctor.activations import activations
from s3_agent.doctor.trainer_memory import state_bytes
from s3_agent.doctor.training import Training, read_training
from s3_agent.embedded import NANO_POLICY
from s3_agent.machine.model_files import PUBLISHED, ModelShape, model_shape
from s3_agent.recipe import load_recipe


def _training(recipe: str, *overrides: str) -> Training:
    chosen = load_recipe(recipe, overrides)
    values: dict[str, Any] = {
        **chosen.trainer.model_dump(),
        **{"run": "measured", "model": chosen.policy.model, "gateway_url": "http://127.0.0.1:8181"},
        **{"checkpoints": "unused", "validation_size": 1},
    }
    return read_training(trainer_config(TrainerSettings.model_validate(values), gateway_key=""))


def _beside(computed: int, measured: int) -> dict[str, float]:
    return {"computed": computed, "measured": measured, "ratio": round(computed / measured, 4)}


def _peak(tracker: Any) -> int:
    [snapshot] = [snap for device, snap in tracker.get_tracker_snapshot("peak").items() if device.type == "cpu"]
    return snapshot["Total"]


def _with_gradients(model: Any) -> int:
    """The state before any micro batch except an update's first: weights and gradients exist already. Their bytes."""
    import torch

    size = 0
    for parameter in model.parameters():
        size += parameter.nbytes
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
            size += parameter.nbytes
    return size


def twin(rows: int, *overrides: str) -> dict[str, Any]:
    """The CPU twin's trainer, with real tensors."""
    import torch
    from tensordict import TensorDict
    from torch.distributed._tools.mem_tracker import MemTracker
    from transformers import AutoModelForCausalLM
    from verl.utils import tensordict_utils as tu
    from verl.utils import torch_functional
    from verl.utils.dataset.dataset_utils import DatasetPadMode
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

    training = _training("cpu", f"trainer.micro_batch={rows}", *overrides)
    shape = model_shape(str(NANO_POLICY), NANO_POLICY)
    assert shape is not None
    model = AutoModelForCausalLM.from_pretrained(NANO_POLICY, dtype=torch.float32, attn_implementation="sdpa").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    length = training.length
    ids = torch.nested.nested_tensor(
        [torch.randint(3, shape.vocab, (length,)) for _ in range(rows)], layout=torch.jagged
    )
    places = torch.nested.nested_tensor([torch.arange(length) for _ in range(rows)], layout=torch.jagged)
    batch = TensorDict({"input_ids": ids, "position_ids": places, "temperature": torch.ones(rows)}, batch_size=[rows])
    tu.assign_non_tensor(
        batch,
        use_remove_padding=training.remove_padding,
        pad_mode=DatasetPadMode.NO_PADDING,
        use_fused_kernels=training.fused,
        calculate_entropy=training.entropy,
        max_response_length=length,
        pad_token_id=0,
    )
    # verl's engine without its processes: the methods used here need only these attributes.
    engine: Any = object.__new__(FSDPEngineWithLMHead)
    engine.use_ulysses_sp, engine.module = False, model
    engine.engine_config = SimpleNamespace(entropy_checkpointing=training.entropy_recomputed)
    engine.compute_entropy_from_logits = torch_functional.entropy_from_logits
    _with_gradients(model)
    tracker = MemTracker()
    tracker.track_external(model, optimizer)
    with tracker:
        inputs, arguments = engine.prepare_model_inputs(batch)
        output = model(**inputs, use_cache=False)
        made = engine.prepare_model_outputs(output, arguments, batch, None)
        loss = -made["log_probs"].values().mean()
        if training.entropy:  # its weight is 0, but its gradient is computed
            loss = loss - 0 * made["entropy"].values().mean()
        del output
        loss.backward()
        peak = _peak(tracker)
    optimizer.step()
    weights = [parameter for parameter in model.parameters()]
    gradients = [parameter.grad for parameter in weights if parameter.grad is not None]
    moments = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    state = state_bytes(shape, training)
    real = {
        "weights": sum(tensor.nbytes for tensor in weights),
        "gradients": sum(tensor.nbytes for tensor in gradients),
        "optimizer": sum(tensor.nbytes for tensor in moments),
    }
    return {
        "rows": rows,
        "tokens": training.micro_batch_tokens(),
        **{name: _beside(state[name], size) for name, size in real.items()},
        "activations_peak": _beside(activations(shape, training).peak, peak - real["weights"] - real["gradients"]),
        "training_peak": _beside(
            state["weights"] + state["gradients"] + activations(shape, training).peak,
            peak,
        ),
    }


def large(recipe: str, model: str) -> dict[str, Any]:
    """A policy of a GPU recipe, traced without data."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker
    from transformers import AutoModelForCausalLM, Qwen2Config
    from verl.models.transformers.dense_common import forward_with_torch_backend

    training, shape = _training(recipe), PUBLISHED[model]
    config = Qwen2Config(**_config(shape) | {"attn_implementation": "sdpa", "use_cache": False})
    tokens = training.micro_batch_tokens()
    assert training.fused and training.checkpointing
    with FakeTensorMode():
        policy: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).train()
        policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if training.lora_rank:
            policy = _with_adapters(policy, training.lora_rank)
        ids: Any = torch.zeros((1, tokens), dtype=torch.long)
        held = _with_gradients(policy)  # in bf16; sharded and fp32 in a run, so they are left out here
        tracker = MemTracker()
        tracker.track_external(policy)
        with _hooks_on_trained_tensors(), tracker:
            made: Any = forward_with_torch_backend(
                policy, input_ids=ids, temperature=1.0, return_dict=True, use_cache=False
            )
            (made.log_probs.sum() - (0 * made.entropy.sum() if training.entropy else 0)).backward()
            peak = _peak(tracker)
    return {"tokens": tokens, "activations_peak": _beside(activations(shape, training).peak, peak - held)}


@contextmanager
def _hooks_on_trained_tensors() -> Iterator[None]:
    """The tracker asks for hooks on the gradients of frozen weights, which torch refuses."""
    import torch

    def only_trained(register: Any) -> Any:
        return lambda tensor, hook: register(tensor, hook) if tensor.requires_grad else Mock()

    names = ("register_hook", "register_post_accumulate_grad_hook")
    with patch.multiple(torch.Tensor, **{name: only_trained(getattr(torch.Tensor, name)) for name in names}):
        yield


def _with_adapters(policy: Any, rank: int) -> Any:
    """The policy with LoRA at all linear layers, in bfloat16, in which FSDP computes with them in a run."""
    import torch
    from peft import LoraConfig, get_peft_model

    policy.enable_input_require_grads()
    adapters = LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    # Tensors without data can not be moved.
    with patch.object(torch.nn.Module, "to", lambda module, *_, **__: module):
        made = get_peft_model(policy, adapters, autocast_adapter_dtype=False).base_model.model
    torch.set_default_dtype(usual)
    return made


def _config(shape: ModelShape) -> dict[str, Any]:
    return {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocab,
        "tie_word_embeddings": shape.tied,
        "max_position_embeddings": shape.positions,
    }


def main(*, rows: int = 2, with_large: bool = typer.Option(False, "--large")) -> None:
    """Measure and print."""
    found: dict[str, Any] = {"twin": twin(rows)}
    if with_large:
        found["s3_8x40gb"] = large("s3_8x40gb", "Qwen/Qwen2.5-7B-Instruct")
        found["s3_3b_8x40gb"] = large("s3_3b_8x40gb", "Qwen/Qwen2.5-3B-Instruct")
        found["s3_lora_1x24gb"] = large("s3_lora_1x24gb", "Qwen/Qwen2.5-3B-Instruct")
    typer.echo(json.dumps(found, indent=1))


if __name__ == "__main__":
    typer.run(main)
