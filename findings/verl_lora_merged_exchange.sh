#!/usr/bin/env bash
# verl 0.8.0 with LoRA and `lora.merge=true` sends the policy server the weights without the adapters, at every step and
# without an error: `get_per_tensor_param` takes the `state_dict()` inside `merged_lora_context`, but reads it in a
# generator, after the context has copied the original weights back into the same tensors. Training goes on: rollouts
# are played by the untrained policy. `verl.model_merger` writes the adapters of such a checkpoint into `lora_adapter`,
# beside weights without them.
#
# Seen with verl 0.8.0, torch 2.11.0, transformers 5.23.0, peft 0.21.2, FSDP2 of one rank over gloo on a CPU, Python
# 3.12, Linux x86-64:
#   inside the context the weights differ from the untrained ones by up to 0.23; what is sent differs by 0.00.
# Fails when that changes. Needs Python 3.12 and PyPI (about 6 GB); installs into a temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.12}" -m venv "$folder/venv"
if command -v uv >/dev/null; then install=(uv pip install --quiet --no-config --python "$folder/venv/bin/python")
else install=("$folder/venv/bin/pip" install --quiet); fi
"${install[@]}" "verl==0.8.0" "torch==2.11.0" "tensordict==0.10.0" "transformers==5.23.0" "ray==2.60.0" "peft==0.21.2"
"${install[@]}" --no-deps "numpy==2.3.5"  # verl asks for numpy 1, pyarrow refuses it
cat >"$folder/look.py" <<'PYTHON'
import sys
from types import SimpleNamespace

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import AutoModelForCausalLM, Qwen2Config
from verl.utils.fsdp_utils import apply_fsdp2, merged_lora_context, normalize_peft_param_name
from verl.workers.engine.fsdp.transformer_impl import FSDPEngine

torch.set_num_threads(1)
dist.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{sys.argv[1]}")
torch.manual_seed(0)
model = AutoModelForCausalLM.from_config(Qwen2Config(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=100, tie_word_embeddings=True,
))
model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
full = MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=torch.float32, cast_forward_inputs=True)
mesh = init_device_mesh("cpu", (1,), mesh_dim_names=("fsdp",))
apply_fsdp2(model, {"mesh": mesh, "mp_policy": full, "offload_policy": None, "reshard_after_forward": True}, {})
for name, weight in model.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(weight.to_local(), std=0.1)  # as if it were trained
untrained = {name: weight.full_tensor().clone() for name, weight in normalize_peft_param_name(model.state_dict()).items()}


def apart(weights):
    return max(float((weights[name].float() - untrained[name].bfloat16().float()).abs().max()) for name in untrained)


with merged_lora_context(model, backup_adapters=True):
    inside = {name: weight.full_tensor().bfloat16() for name, weight in normalize_peft_param_name(model.state_dict()).items()}
engine = SimpleNamespace(
    module=model, model_config=SimpleNamespace(lora={"merge": True}), _uses_fsdp2_cpu_offload_policy=False,
    _is_offload_param=False, _qat_enabled=False,
)
sent = dict(FSDPEngine.get_per_tensor_param(engine, layered_summon=False, base_sync_done=True)[0])
print(f"inside the context: {apart(inside):.2f} from the untrained weights; sent: {apart(sent):.2f}")
assert apart(inside) > 0.01 and apart(sent) == 0.0, "verl sends the merged weights"
dist.destroy_process_group()
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/look.py" "$folder/store"
