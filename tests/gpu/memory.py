"""The memory plan beside what a card holds: forward and backward passes and optimizer steps of the recipes' policies.

    python -m tests.gpu.memory --case s3_1x80gb [--small]

`activations_*`: weights and gradients whole, in bfloat16; what is compared is the rest. A recipe's name: its shards in
float32, as verl has them with FSDP2, and each phase as a whole. Where the recipe has more cards, this one holds what
one of them would, and the collectives move nothing (torch's fake process group): the values mean nothing, the sizes
are right. Gradient checkpointing and verl's own fused log-probs with its entropy, as the recipes have them. Rows are
packed, and attention is torch's, row by row, since flash-attn is not there: it keeps the same tensors.
"""

import gc
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from s3_agent.agl.verl_config import TrainerRecipe, TrainerSettings, settings_alone
from s3_agent.doctor.activations import activations
from s3_agent.doctor.memory import FRAGMENTS
from s3_agent.doctor.trainer_memory import training_phases
from s3_agent.doctor.training import Training, read_training
from s3_agent.machine.model_files import PUBLISHED, ModelShape
from s3_agent.recipe import load_recipe
from tests.gpu.measuring import Measuring, begin

CASES = ("activations_3b", "activations_7b", "s3_1x80gb", "s3_8x40gb", "s3_3b_8x40gb")
RECIPE_OF = {"activations_3b": "s3_3b_8x40gb", "activations_7b": "s3_8x40gb"}
ROWS = 3  # packed into a micro batch
NOT_HERE = ("vLLM", "CUDA contexts", "collectives", "allocator fragments")  # of the plan's items


def planned(case: str, *, small: bool) -> tuple[ModelShape, Training]:
    """The policy's shape and what is trained of it."""
    recipe = load_recipe(RECIPE_OF.get(case, case))
    settings = TrainerSettings.model_validate(
        {
            **recipe.trainer.model_dump(include=set(TrainerRecipe.model_fields)),
            **{"run": "measured", "model": recipe.policy.model, "gateway_url": "http://127.0.0.1:8181"},
            **{"checkpoints": "unused", "validation_size": 1},
        }
    )
    shape, training = PUBLISHED[recipe.policy.model], read_training(settings_alone(settings))
    if small:
        shape = replace(shape, hidden=64, layers=2, heads=4, kv_heads=2, head_dim=16, intermediate=128, vocab=512)
        training = replace(training, tokens_per_gpu=1026)
    return shape, training


def fused_log_probs() -> Any:
    """verl's module for them, out of its file: verl itself imports a training stack that is not there."""
    found = importlib.util.find_spec("verl")
    assert found is not None and found.submodule_search_locations, "verl's wheel is not there: tests/gpu/carry.sh"
    path = Path(found.submodule_search_locations[0]) / "utils" / "experimental" / "torch_functional.py"
    spec = importlib.util.spec_from_file_location("verl_torch_functional", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.FusedLinearForPPO()


def packed(rows: int) -> Callable[..., tuple[torch.Tensor, None]]:
    """Attention inside each of `rows` equal parts of the sequence."""

    def attend(
        _: Any, query: Any, key: Any, value: Any, __: Any, scaling: float | None = None, **___: Any
    ) -> tuple[torch.Tensor, None]:
        parts = [
            torch.nn.functional.scaled_dot_product_attention(*part, is_causal=True, scale=scaling, enable_gqa=True)
            for part in zip(*(tensor.chunk(rows, dim=2) for tensor in (query, key, value)), strict=True)
        ]
        return torch.cat(parts, dim=2).transpose(1, 2), None

    return attend


def policy(shape: ModelShape, dtype: torch.dtype, device: str) -> Any:
    """Random weights on the device."""
    from transformers import AttentionInterface, AutoModelForCausalLM, Qwen2Config

    AttentionInterface.register("packed", packed(ROWS))
    config = Qwen2Config(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.intermediate,
        vocab_size=shape.vocab,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=shape.positions,
    )
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="packed")
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    fused = fused_log_probs()

    def log_probs(input_ids: Any, position_ids: Any) -> Any:
        hidden = model.model(input_ids=input_ids, position_ids=position_ids, use_cache=False).last_hidden_state
        return fused(hidden, model.lm_head.weight, torch.roll(input_ids, -1, dims=-1), 1.0)

    model.forward = log_probs
    return model


def micro_batch(model: Any, shape: ModelShape, training: Training, device: str) -> None:
    """One forward and backward pass of the most tokens."""
    tokens = training.micro_batch_tokens() // ROWS * ROWS
    ids = torch.randint(3, shape.vocab, (1, tokens), device=device)
    places = torch.arange(tokens // ROWS, device=device).repeat(ROWS).unsqueeze(0)
    made, entropy = model(input_ids=ids, position_ids=places)
    (made.mean() - (0 * entropy.mean() if training.entropy else 0)).backward()


@contextmanager
def peak(measuring: Measuring, *tracked: Any) -> Iterator[dict[str, int]]:
    """Fills in bytes: `allocated` and, on a card, `reserved`. On a CPU torch's memory tracker counts."""
    found: dict[str, int] = {}
    gc.collect()
    if measuring.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        yield found
        measuring.wait()
        found |= {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
        return
    from torch.distributed._tools.mem_tracker import MemTracker

    tracker = MemTracker()
    tracker.track_external(*tracked)
    with tracker:
        yield found
        snapshots = tracker.get_tracker_snapshot("peak")
    found["allocated"] = max(snapshot["Total"] for snapshot in snapshots.values())


def beside(planned_bytes: int, found: dict[str, int]) -> dict[str, Any]:
    """A plan's bytes and the measured ones."""
    figures: dict[str, Any] = {
        "planned": planned_bytes,
        "measured": found["allocated"],
        "ratio": planned_bytes / found["allocated"],
    }
    if "reserved" in found:
        fragments = found["reserved"] / found["allocated"] - 1
        figures |= {"reserved": found["reserved"], "fragments": fragments, "fragments_planned": FRAGMENTS}
    return figures


def whole(measuring: Measuring, shape: ModelShape, training: Training) -> None:
    """What a pass needs beside whole weights and gradients."""
    model = policy(shape, torch.bfloat16, measuring.device)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    if measuring.device == "cuda":
        micro_batch(
            model, shape, replace(training, tokens_per_gpu=ROWS * 64), "cuda"
        )  # libraries take their own memory
    with peak(measuring, model) as found:
        micro_batch(model, shape, training, measuring.device)
    found = {name: size - 2 * 2 * shape.parameters for name, size in found.items()}
    measuring.say("pass", tokens=training.micro_batch_tokens(), **beside(activations(shape, training).peak, found))


def sharded(measuring: Measuring, case: str, shape: ModelShape, training: Training) -> None:
    """The phases of an update with the shards of one rank."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=training.shards, store=FakeStore())
    mesh = init_device_mesh(measuring.device, (training.shards,))
    model = policy(shape, torch.float32, measuring.device)
    how: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32),
        "reshard_after_forward": True,
    }
    # The output layer stays with the rest of the model: its weights are read from outside it.
    for module in [*model.model.layers, *([] if shape.tied else [model.model.embed_tokens])]:
        fully_shard(module, **how)
    fully_shard(model, **how)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    phases = {phase.name: phase for phase in training_phases(shape, training, total=80 << 30)}

    def expected(name: str) -> int:
        return sum(item.size for item in phases[name].items if not item.name.startswith(NOT_HERE))

    micro_batch(model, shape, training, measuring.device)
    optimizer.step()
    optimizer.zero_grad()
    micro_batch(model, shape, training, measuring.device)
    with peak(measuring, model, optimizer) as found:
        micro_batch(model, shape, training, measuring.device)
    say = {"case": case, "shards": training.shards, "tokens": training.micro_batch_tokens()}
    measuring.say("training", **say, **beside(expected("training"), found))
    if measuring.device == "cuda":
        took = measuring.seconds(lambda: micro_batch(model, shape, training, measuring.device), repeats=2)
        operations = 8 * shape.parameters * training.micro_batch_tokens()  # a second forward pass by checkpointing
        measuring.say("speed", **say, seconds=took, operations_per_s=operations / took)
    with peak(measuring, model, optimizer) as found:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    measuring.say("optimizer step", **say, **beside(expected("optimizer step"), found))
    dist.destroy_process_group()


def main() -> None:
    """Measure and print."""
    measuring, options = begin("memory", "--case")
    assert options.case in CASES, f"--case is one of {CASES}"
    shape, training = planned(options.case, small=measuring.small)
    if options.case in RECIPE_OF:
        whole(measuring, shape, training)
    else:
        sharded(measuring, options.case, shape, training)


if __name__ == "__main__":
    main()
