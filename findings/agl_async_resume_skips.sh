#!/usr/bin/env bash
# With Agent Lightning 1.0.2's `async_rollout`, a training that is resumed from a checkpoint never trains some questions:
#   - those that were carried over, because their rollouts are only in the trainer's and the gateway's memory;
#   - those that the trainer had taken from the data in a whole batch and not queued yet (`_train_dataloader_buf`).
# The checkpoint (verl's data.pt) has the position in the data after both. Here a step has four questions, six are in play.
#
# Seen with agentlightning 1.0.2, verl 0.8.0, torch 2.11.0, Python 3.12, Linux x86-64:
#   queued: [0..5] [6..9]; carried over at the checkpoint: [8, 9]; without a stop next: [10..13]; resumed: [12..17];
#   never trained: [8, 9, 10, 11].
# Fails when that changes. Needs Python 3.12 and PyPI (about 6 GB); installs into a temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.12}" -m venv "$folder/venv"
if command -v uv >/dev/null; then install=(uv pip install --quiet --no-config --python "$folder/venv/bin/python")
else install=("$folder/venv/bin/pip" install --quiet); fi
"${install[@]}" "agentlightning==1.0.2" "verl==0.8.0" "torch==2.11.0" "tensordict==0.10.0" "transformers==5.23.0" "ray==2.60.0"
"${install[@]}" --no-deps "numpy==2.3.5"  # verl asks for numpy 1, pyarrow refuses it
cat >"$folder/look.py" <<'PYTHON'
from types import SimpleNamespace

from agentlightning.verl.dataset import LoadedDataset
from agentlightning.verl.trainer import AgentLightningRayPPOTrainer
from omegaconf import OmegaConf
from torchdata.stateful_dataloader import StatefulDataLoader
from verl.utils.dataset.rl_dataset import collate_fn

STEP, IN_PLAY = 4, 6


def trainer():
    """The trainer's part that takes questions from the data, with verl's own data loader."""
    made = AgentLightningRayPPOTrainer.__new__(AgentLightningRayPPOTrainer)
    made.config = OmegaConf.create({"agentlightning": {"async_rollout": {"async_train_batch_size": IN_PLAY}}})
    made.is_async, made.epoch, made._carry_over_rollouts, made._train_dataloader_iter = True, 0, [], None
    data = LoadedDataset([{"question": number} for number in range(24)])
    made.train_dataloader = StatefulDataLoader(data, batch_size=STEP, drop_last=True, collate_fn=collate_fn)
    return made


def queued(made):
    return [int(number) for number in made._next_train_batch_dict_for_rollout()["question"]]


first = trainer()
one = queued(first)
first._carry_over_rollouts = [SimpleNamespace(data_id=number) for number in one[STEP:]]  # four of the six are complete
two = queued(first)
carried = two[-2:]  # the two of the first step, and two of the second are complete
first._carry_over_rollouts = [SimpleNamespace(data_id=number) for number in carried]
checkpoint = first.train_dataloader.state_dict()  # verl's _save_checkpoint writes it to data.pt
without = queued(first)

second = trainer()
second.train_dataloader.load_state_dict(checkpoint)  # verl's _load_checkpoint
resumed = queued(second)
never = sorted(set(range(min(resumed))) - (set(one + two) - set(carried)))
print("queued:", one, two, "carried over:", carried)
print("without a stop next:", without, "resumed:", resumed, "never trained:", never)
assert (one, two, carried) == ([0, 1, 2, 3, 4, 5], [6, 7, 8, 9], [8, 9])
assert without == [10, 11, 12, 13] and resumed == [12, 13, 14, 15, 16, 17] and never == [8, 9, 10, 11]
print("ok")
PYTHON
"$folder/venv/bin/python" -c "
from importlib.metadata import version
print(*(f'{name} {version(name)}' for name in ('agentlightning', 'verl', 'torch')))"
"$folder/venv/bin/python" "$folder/look.py"
