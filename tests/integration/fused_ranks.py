"""`python fused_ranks.py RANK RANKS STORE MODULES`: a tiny untied policy that some ranks train with verl's own FSDP2.

Two updates of two micro batches each by the model's own logits, and again by verl's fused log-probs. Prints the
losses of both and the largest difference of the last gradients, relative to a gradient's largest number.
"""

import json
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import AutoModelForCausalLM, Qwen2Config
from verl.models.transformers.monkey_patch import patch_forward_with_backends
from verl.utils.fsdp_utils import apply_fsdp2
from verl.utils.import_utils import import_external_libs
from verl.utils.torch_functional import entropy_from_logits

TEMPERATURE, WORDS = 0.7, 100


def sharded(ranks: int, *, fused: bool) -> Any:
    """The same weights whichever the forward."""
    torch.manual_seed(0)
    sizes: Any = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": WORDS}
    heads: Any = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = AutoModelForCausalLM.from_config(Qwen2Config(**sizes, **heads, tie_word_embeddings=False))
    patch_forward_with_backends(model, use_fused_kernels=fused, fused_kernels_backend="torch")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    full = MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=torch.float32, cast_forward_inputs=True)
    mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("fsdp",))
    how = {"mesh": mesh, "mp_policy": full, "offload_policy": None, "reshard_after_forward": True}
    apply_fsdp2(model, how, {})
    return model.train()


def log_probs_of(model: Any, ids: torch.Tensor, *, fused: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropy, both of the shape (1, tokens)."""
    if fused:
        output = model(input_ids=ids, temperature=TEMPERATURE, return_dict=True, use_cache=False)
        return output.log_probs, output.entropy
    logits = model(input_ids=ids, use_cache=False).logits / TEMPERATURE
    log_probs = logits.log_softmax(-1).gather(-1, ids.roll(-1, -1).unsqueeze(-1)).squeeze(-1)
    return log_probs, entropy_from_logits(logits)


def trained(rank: int, ranks: int, *, fused: bool) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of this rank's micro batches, and the whole gradients before the last step."""
    model, drawn = sharded(ranks, fused=fused), torch.Generator().manual_seed(rank + 1)
    optimizer, losses, gradients = torch.optim.SGD(model.parameters(), lr=0.5), [], {}
    for _ in range(2):
        optimizer.zero_grad()
        for _ in range(2):
            ids, weights = torch.randint(WORDS, (1, 40), generator=drawn), torch.rand(1, 40, generator=drawn)
            with torch.no_grad():
                old, _ = log_probs_of(model, ids, fused=fused)
            log_probs, entropy = log_probs_of(model, ids, fused=fused)
            loss = ((log_probs - 0.5 * old) * weights).sum() + 0.1 * entropy.sum()
            loss.backward()
            losses.append(loss.item())
        gradients = {name: value.grad.full_tensor().clone() for name, value in model.named_parameters()}
        optimizer.step()
    return losses, gradients


def main(rank: int, ranks: int, store: str, modules: list[str]) -> None:
    """What one rank prints."""
    torch.set_num_threads(1)
    import_external_libs(modules)
    dist.init_process_group("gloo", rank=rank, world_size=ranks, init_method=f"file://{store}")
    losses, gradients = trained(rank, ranks, fused=False)
    fused_losses, fused_gradients = trained(rank, ranks, fused=True)
    apart = {
        name: float((value - fused_gradients[name]).abs().max() / value.abs().max())
        for name, value in gradients.items()
    }
    print(json.dumps({"losses": losses, "fused": fused_losses, "apart": apart}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
