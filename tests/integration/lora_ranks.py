"""`python lora_ranks.py RANK RANKS STORE FOLDER`: verl's own FSDP engine trains adapters of the nano policy on the CPU.

It writes into FOLDER the weights for the policy server, a checkpoint, and the trainer's own logits; it prints, as JSON,
how far those of the reference are from the starting model's, how far verl's own exchange is from it, and whether a new
engine continues from the checkpoint.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

IDS = list(range(40, 104))
LORA: dict[str, Any] = {"lora_rank": 8, "lora_alpha": 16, "lora": {"merge": True}}
FULL = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}


def made() -> Any:
    """verl's engine as the trainer's worker makes it."""
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
    from verl.workers.engine.fsdp import FSDPEngineWithLMHead

    from s3_agent.agl import cpu
    from s3_agent.embedded import NANO_POLICY

    attention = {"attn_implementation": "sdpa"}
    model = HFModelConfig(path=str(NANO_POLICY), external_lib=cpu.ENGINE, override_config=attention, **LORA)
    how = FSDPEngineConfig(
        strategy="fsdp2", model_dtype="bf16", param_offload=True, mixed_precision=FULL, use_torch_compile=False
    )
    make: Any = FSDPEngineWithLMHead
    engine = make(model, how, FSDPOptimizerConfig(lr=0.01, total_training_steps=2), CheckpointConfig())
    engine.initialize()
    return engine


def logits(engine: Any) -> Any:
    import torch

    with torch.no_grad():
        return engine.module(input_ids=torch.tensor([IDS]), use_cache=False).logits[0].float()


def whole(state: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor.full_tensor().clone() for name, tensor in state.items()}


def train(engine: Any, *, steps: int) -> None:
    """Make each token's successor more likely."""
    import torch

    ids = torch.tensor([IDS])
    for _ in range(steps):
        engine.module(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        engine.optimizer_step()
        engine.optimizer_zero_grad()


def main(rank: int, ranks: int, store: str, folder: Path) -> None:
    import torch
    import torch.distributed as dist
    import verl  # noqa: F401  loads the shim

    torch.set_num_threads(1)
    dist.init_process_group("cpu:gloo", rank=rank, world_size=ranks, init_method=f"file://{store}")
    engine = made()
    from safetensors.torch import save_file

    from s3_agent.agl import lora_exchange

    start = whole(engine.module.state_dict())
    first = logits(engine)
    train(engine, steps=3)
    state = whole(engine.module.state_dict())
    sent, adapter = engine.get_per_tensor_param(layered_summon=False, base_sync_done=True)
    sent = dict(sent)
    theirs = dict(lora_exchange._exchanged(engine, layered_summon=False, base_sync_done=True)[0])
    with engine.disable_adapter():
        reference = logits(engine)
    after = whole(engine.module.state_dict())
    engine.save_checkpoint(str(folder / "actor"))
    again = made()
    again.load_checkpoint(str(folder / "actor"))
    resumed = whole(again.module.state_dict())
    trained = {name for name in state if ".lora_" in name and not torch.equal(state[name], start[name])}
    moments = [set(value) for value in again.optimizer.state_dict()["state"].values()]
    if rank == 0:
        # The output layer is the embedding, and safetensors stores a tensor once.
        save_file({n: t.contiguous() for n, t in sent.items() if n != "lm_head.weight"}, folder / "sent.safetensors")
        save_file({"logits": logits(engine)}, folder / "logits.safetensors")
    else:
        logits(engine)
    print(
        json.dumps(
            {
                "adapter": adapter,
                "reference": float((reference - first).abs().max()),
                "verl_sends": max(float((theirs[n] - start[_wrapped(n, start)]).abs().max()) for n in theirs),
                "frozen": all(torch.equal(state[n], start[n]) for n in state if ".lora_" not in n),
                "unchanged_by_the_exchange": all(torch.equal(state[n], after[n]) for n in state),
                "trained": len(trained),
                "adapters": sum(".lora_" in name for name in state),
                "adapter_dtypes": sorted({str(state[n].dtype) for n in state if ".lora_" in n}),
                "resumed": all(torch.equal(state[n], resumed[n]) for n in state),
                "moments": len([names for names in moments if "exp_avg" in names]),
            }
        )
    )
    dist.destroy_process_group()


def _wrapped(name: str, state: dict[str, Any]) -> str:
    """The name of a weight in the model with adapters."""
    stem, _, kind = f"base_model.model.{name}".rpartition(".")
    return f"{stem}.base_layer.{kind}" if f"{stem}.base_layer.{kind}" in state else f"{stem}.{kind}"


if __name__ == "__main__":
    os.environ.update(VERL_USE_EXTERNAL_MODULES="s3_agent.agl.cpu.shim", TORCHDYNAMO_DISABLE="1")
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
