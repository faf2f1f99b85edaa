"""`python resumed_ranks.py RANK RANKS STORE FOLDER lora|full`: verl's own FSDP engine continues from its checkpoint.

Two updates of the nano policy, and a checkpoint. One engine with the same settings continues from it, one with others,
and one with others as verl itself loads it. Prints, as JSON, what each of them has and what its next update does.
"""

import json
import os
import sys
from typing import Any

IDS = list(range(40, 104))
FULL = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
LORA: dict[str, Any] = {"lora_rank": 8, "lora_alpha": 16, "lora": {"merge": True}}
STARTED: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.01, "betas": (0.9, 0.999), "lr_warmup_steps": 4}
OTHER: dict[str, Any] = {"lr": 0.002, "weight_decay": 0.5, "betas": (0.8, 0.99), "lr_warmup_steps": 2}


def made(kind: str, settings: dict[str, Any]) -> Any:
    """verl's engine as the trainer's worker makes it."""
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
    from verl.workers.engine.fsdp import FSDPEngineWithLMHead

    from s3_agent.agl import cpu
    from s3_agent.embedded import NANO_POLICY

    lora = LORA if kind == "lora" else {}
    attention = {"attn_implementation": "sdpa"}
    model = HFModelConfig(path=str(NANO_POLICY), external_lib=cpu.ENGINE, override_config=attention, **lora)
    how = FSDPEngineConfig(strategy="fsdp2", mixed_precision=FULL, use_torch_compile=False, optimizer_offload=True)
    make: Any = FSDPEngineWithLMHead
    engine = make(model, how, FSDPOptimizerConfig(total_training_steps=10, **settings), CheckpointConfig())
    engine.initialize()
    return engine


def update(engine: Any) -> float:
    """Make each token's successor more likely; returns the rate after the update, which is logged as `actor/lr`."""
    import torch

    ids = torch.tensor([IDS])
    engine.optimizer_zero_grad()
    engine.module(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    engine.optimizer_step()
    return engine.lr_scheduler_step()


def options(engine: Any) -> dict[str, Any]:
    [group] = engine.optimizer.param_groups
    return {name: value for name, value in group.items() if name != "params"}


def local(tensor: Any) -> Any:
    return getattr(tensor, "to_local", lambda: tensor)().detach().clone()


def moments(engine: Any) -> dict[Any, dict[str, Any]]:
    """By the number of each parameter that was updated; offloading leaves empty ones for the others."""
    state = engine.optimizer.state_dict()["state"]
    return {number: {name: local(value) for name, value in found.items()} for number, found in state.items() if found}


def weights(engine: Any) -> list[Any]:
    return [local(parameter) for parameter in engine.optimizer.param_groups[0]["params"]]


def same(left: Any, right: Any) -> bool:
    import torch

    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return torch.equal(left, right)


def next_update(engine: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """What the engine has after it was loaded, and whether its next update is torch's own with these settings."""
    import torch

    found: dict[str, Any] = {"options": options(engine), "last": engine.lr_scheduler.get_last_lr()}
    start, saved = weights(engine), moments(engine)
    rate = update(engine)
    parameters = [torch.nn.Parameter(weight.clone()) for weight in start]
    by_torch = torch.optim.AdamW(parameters, **settings)
    by_torch.load_state_dict({"state": saved, "param_groups": by_torch.state_dict()["param_groups"]})
    for copy, parameter in zip(parameters, engine.optimizer.param_groups[0]["params"], strict=True):
        copy.grad = None if parameter.grad is None else local(parameter.grad)
    by_torch.step()
    trained = [weight.requires_grad and weight.numel() > 0 for weight in engine.optimizer.param_groups[0]["params"]]
    moved = [not torch.equal(old, new) for old, new in zip(start, weights(engine), strict=True)]
    found["moved"] = moved == trained and any(moved)
    found["as_torch"] = same(weights(engine), [local(parameter) for parameter in parameters])
    found["logged"] = rate
    return found


def main(rank: int, ranks: int, store: str, folder: str, kind: str) -> None:
    import torch
    import torch.distributed as dist
    import verl  # noqa: F401  loads the shim

    torch.set_num_threads(1)
    dist.init_process_group("cpu:gloo", rank=rank, world_size=ranks, init_method=f"file://{store}")
    began = made(kind, STARTED)
    for _ in range(2):
        update(began)
    began.save_checkpoint(folder)
    saved, position = moments(began), began.lr_scheduler.state_dict()

    from s3_agent.agl import resumed_optimizer

    again, other, theirs = made(kind, STARTED), made(kind, OTHER), made(kind, OTHER)
    for engine in (again, other):
        engine.load_checkpoint(folder)
    resumed_optimizer._load_checkpoint(theirs.checkpoint_manager, folder)
    told: dict[str, Any] = {
        "unchanged": {
            "options": options(again) == options(began),
            "schedule": again.lr_scheduler.state_dict() == position,
            "moments": same(moments(again), saved),
        },
        "moments": same(moments(other), saved) and bool(saved),
        "position": other.lr_scheduler.last_epoch,
        "theirs": options(theirs),
    }
    betas_and_decay = {name: OTHER[name] for name in ("betas", "weight_decay")}
    told["other"] = next_update(other, {"lr": 0.002, **betas_and_decay})
    rates = [(update(began), update(again)) for _ in range(3)]
    told["unchanged"] |= {
        "rates": all(left == right for left, right in rates),
        "weights": same(weights(began), weights(again)),
        "moments_after": same(moments(began), moments(again)),
    }
    print(json.dumps(told))
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.update(VERL_USE_EXTERNAL_MODULES="s3_agent.agl.cpu.shim", TORCHDYNAMO_DISABLE="1")
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
