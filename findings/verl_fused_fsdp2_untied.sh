#!/usr/bin/env bash
# verl 0.8.0 with fused kernels and strategy fsdp2 can not compute the log-probs of a model whose output layer is not
# tied to its embedding (Qwen2.5-7B): `apply_fsdp2` shards `lm_head` as a separate unit, which FSDP2 gathers only while
# it is called, and `forward_with_torch_backend` (dense_common.py, also those of the vision models) reads
# `lm_head.weight` without calling it. For a tied model the weight is complete there, and so it is for an untied one
# under strategy fsdp. verl's qwen3_5.py calls `full_tensor()` on such a weight: nothing fails, but its gradient is not
# reduced across the ranks. Each rank has only the gradient of its own rows.
#
# Seen with verl 0.8.0, torch 2.11.0, transformers 5.23.0, two ranks over gloo on a CPU, Python 3.12, Linux x86-64:
#   fsdp2 untied: RuntimeError: aten.mm.default got mixed torch.Tensor and DTensor; fsdp2 tied, fsdp untied, fsdp tied: computed;
#   with `full_tensor()` put into the same forward: lm_head's gradient is off by 1.41 of its largest number.
# Fails when that changes. Needs Python 3.12 and PyPI (about 6 GB); installs into a temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.12}" -m venv "$folder/venv"
if command -v uv >/dev/null; then install=(uv pip install --quiet --no-config --python "$folder/venv/bin/python")
else install=("$folder/venv/bin/pip" install --quiet); fi
"${install[@]}" "verl==0.8.0" "torch==2.11.0" "tensordict==0.10.0" "transformers==5.23.0" "ray==2.60.0"
"${install[@]}" --no-deps "numpy==2.3.5"  # verl asks for numpy 1, pyarrow refuses it
cat >"$folder/look.py" <<'PYTHON'
import sys

import torch
import torch.distributed as dist
import verl.utils.experimental.torch_functional as functional
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM
from verl.models.transformers.monkey_patch import patch_forward_with_backends
from verl.utils.fsdp_utils import apply_fsdp2, get_fsdp_wrap_policy

rank, plain_forward = int(sys.argv[1]), Qwen2ForCausalLM.forward
torch.set_num_threads(1)
dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{sys.argv[2]}")
mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("fsdp",))
torch.manual_seed(rank)
ids = torch.randint(100, (1, 40))


def made(strategy, tied, fused):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Qwen2Config(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=100, tie_word_embeddings=tied,
    ))
    type(model).forward = plain_forward
    patch_forward_with_backends(model, use_fused_kernels=fused, fused_kernels_backend="torch")
    if strategy == "fsdp":
        policy = get_fsdp_wrap_policy(model, {})
        return FullyShardedDataParallel(
            model, auto_wrap_policy=policy, device_mesh=mesh, use_orig_params=True, device_id=torch.device("cpu")
        )
    full = MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=torch.float32, cast_forward_inputs=True)
    apply_fsdp2(model, {"mesh": mesh, "mp_policy": full, "offload_policy": None, "reshard_after_forward": True}, {})
    return model


def head_gradient(model, fused):
    if fused:
        log_probs = model(input_ids=ids, temperature=1.0, return_dict=True, use_cache=False).log_probs
    else:
        logits = model(input_ids=ids, use_cache=False).logits
        log_probs = logits.log_softmax(-1).gather(-1, ids.roll(-1, -1).unsqueeze(-1)).squeeze(-1)
    log_probs.sum().backward()
    found = dict(model.named_parameters()).get("lm_head.weight")
    return found.grad.full_tensor() if found is not None and isinstance(found.grad, DTensor) else None


found = {}
for strategy in ("fsdp2", "fsdp"):
    for tied in (False, True):
        model = made(strategy, tied, fused=True)
        try:
            head_gradient(model, fused=True)
            found[strategy, tied] = "computed"
        except RuntimeError as error:
            found[strategy, tied] = f"RuntimeError: {error}"
if rank == 0:
    for (strategy, tied), what in found.items():
        print(strategy, "tied:" if tied else "untied:", what)
assert "got mixed torch.Tensor and DTensor" in found.pop(("fsdp2", False)), found
assert set(found.values()) == {"computed"}, found

# As qwen3_5.py does, in the forward of this model.
whole = head_gradient(made("fsdp2", False, fused=False), fused=False)
forward = functional.FusedLinearForPPO.forward
functional.FusedLinearForPPO.forward = lambda self, **given: forward(
    self, **{**given, "vocab_weights": given["vocab_weights"].full_tensor()}
)
own = head_gradient(made("fsdp2", False, fused=True), fused=True)
apart = float((own - whole).abs().max() / whole.abs().max())
if rank == 0:
    print("gradient by full_tensor(), off by", f"{apart:.2f}", "of its largest number")
assert apart > 0.1
dist.destroy_process_group()
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/look.py" 1 "$folder/store" >"$folder/other" 2>&1 &
"$folder/venv/bin/python" -W ignore "$folder/look.py" 0 "$folder/store"
wait $! || { cat "$folder/other"; exit 1; }
