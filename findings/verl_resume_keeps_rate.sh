#!/usr/bin/env bash
# verl 0.8.0 resumes with the learning rate, weight decay and betas of the checkpoint, whatever the configuration says:
# `FSDPCheckpointManager.load_checkpoint` loads torch's whole optimizer state, whose groups have these settings, and then
# the state of the schedule, whose `base_lrs` are those that the run was started with. No setting of verl leaves them
# out: without `optimizer` in `load_contents` the moments are lost, without `extra` the schedule's position. Only the
# functions of the schedule are not saved: a changed warm-up applies, with the old rate as its base.
#
# Seen with verl 0.8.0, torch 2.11.0, transformers 5.23.0 on a CPU, Python 3.12, Linux x86-64; started with rate 0.01,
# decay 0.01, warm-up 4, resumed after two updates with rate 0.002, decay 0.5, warm-up 2:
#   configured 0.002 and 0.5, resumed with 0.005 and 0.01, after the next update 0.01
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
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import AutoModelForCausalLM, Qwen2Config
from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager
from verl.utils.fsdp_utils import apply_fsdp2
from verl.utils.torch_functional import get_constant_schedule_with_warmup
from verl.workers.config.optimizer import FSDPOptimizerConfig, build_optimizer

folder = sys.argv[1]
dist.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{folder}/store")
mesh = init_device_mesh("cpu", (1,), mesh_dim_names=("fsdp",))
full = MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=torch.float32, cast_forward_inputs=True)
ids = torch.arange(40).unsqueeze(0)


class Part:
    def __init__(self, rate, decay, warm_up):
        self.model = AutoModelForCausalLM.from_config(Qwen2Config(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=100, tie_word_embeddings=True,
        ))
        apply_fsdp2(
            self.model, {"mesh": mesh, "mp_policy": full, "offload_policy": None, "reshard_after_forward": True}, {}
        )
        config = FSDPOptimizerConfig(lr=rate, weight_decay=decay)
        self.optimizer = build_optimizer(self.model.parameters(), config)
        self.schedule = get_constant_schedule_with_warmup(self.optimizer, num_warmup_steps=warm_up)
        self.manager = FSDPCheckpointManager(
            self.model, self.optimizer, self.schedule, checkpoint_config={}, processing_class=None
        )

    def update(self):
        self.optimizer.zero_grad()
        self.model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        self.optimizer.step()
        self.schedule.step()

    @property
    def settings(self):
        [group] = self.optimizer.param_groups
        return group["lr"], group["weight_decay"]


started = Part(0.01, 0.01, 4)
started.update()
started.update()
started.manager.save_checkpoint(f"{folder}/actor")
resumed = Part(0.002, 0.5, 2)
resumed.manager.load_checkpoint(f"{folder}/actor")
after_load = resumed.settings
resumed.update()
print("resumed with", *after_load, "after the next update", *resumed.settings)
dist.destroy_process_group()
raise SystemExit((after_load, resumed.settings) != ((0.005, 0.01), (0.01, 0.01)))
PYTHON
"$folder/venv/bin/python" -c "import torch, transformers; print('torch', torch.__version__, 'transformers', transformers.__version__)"
"$folder/venv/bin/python" -W ignore "$folder/look.py" "$folder" 2>"$folder/errors" || { tail -5 "$folder/errors"; echo "verl behaves otherwise now"; exit 1; }
