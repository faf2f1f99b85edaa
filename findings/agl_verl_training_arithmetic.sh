#!/usr/bin/env bash
# How Agent Lightning 1.0.2 and verl 0.8.0 process valid rollouts before training; each of these results is unexpected:
#   - the only rollout of a group gets its raw reward as advantage (verl's grpo and most similar estimators): after Agent
#     Lightning has dropped rows at random, the mean of a batch is not 0;
#   - with two updates per step, Agent Lightning's default loss gives each update half of the policy's gradient, while
#     verl's KL is not halved: kl_loss_coef weighs twice as much as with verl's own losses;
#   - low_var_kl has no gradient if the reference's log-prob is 2.61 nats higher, or 11 lower (the estimate is clamped at
#     10);
#   - rewards are stored in bfloat16: 0.901 to 0.904 become equal, and the group counts as one of equal rewards;
#   - the rewards true and "0.5" are ignored, and train as 0;
#   - of two calls with the same prompt only the last answer is kept, of n=2 only the first choice.
#
# Seen with agentlightning 1.0.2, verl 0.8.0, torch 2.11.0, numpy 2.3.5, transformers 5.23.0, Python 3.12, Linux x86-64:
#   lone rollout: 1.0; gradient of the second half, policy and KL: 0.5 1.0; pull at 2.60 and 2.65 nats: -12.46 0.0;
#   rewards: [0.90234375]; true, "0.5": None None; kept: [[4]] [[2]].
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
import numpy as np
import torch
from agentlightning.schemas import Event
from agentlightning.server.routes.events import _dedupe_model_requests_by_prompt_token_ids, _to_triplet_format
from agentlightning.verl.agl_rollout_manager import CompletedRollout, Triplet, _as_reward_value
from agentlightning.verl.per_rollout_loss import normalize_advantages_by_rollout
from agentlightning.verl.rollout_adapter import RolloutAdapter
from tensordict import TensorDict
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage, kl_penalty
from verl.utils import tensordict_utils as tu
from verl.workers.config import ActorConfig
from verl.workers.config.actor import PolicyLossConfig
from verl.workers.utils.losses import ppo_loss

# A lone rollout.
rewards, mask = torch.tensor([[1.0], [0.0], [1.0]]), torch.ones(3, 1)
advantages, _ = compute_grpo_outcome_advantage(rewards, mask, np.array(["a", "a", "b"]))
lone = round(float(advantages[2, 0]), 3)
print("lone rollout:", lone)
assert lone == 1.0

# Two updates a step: the gradient of four rows that are a step of their own, or the first half of one of eight.
def gradient(rows_of_step, coefficient):
    config = ActorConfig(
        strategy="fsdp2", use_kl_loss=True, kl_loss_coef=coefficient, ppo_micro_batch_size_per_gpu=1, rollout_n=1,
        policy_loss=PolicyLossConfig(loss_mode="per_rollout_mean"),
    )
    ones = torch.ones(4, 3)
    signs = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]) * ones
    data = TensorDict({
        "prompts": torch.ones(4, 1, dtype=torch.long), "responses": torch.ones(4, 3, dtype=torch.long),
        "attention_mask": torch.ones(4, 4, dtype=torch.long), "response_mask": torch.ones(4, 3, dtype=torch.long),
        "old_log_probs": -ones, "ref_log_prob": -1.5 * ones,
        "advantages": normalize_advantages_by_rollout(signs, ones, list("abcd"), num_trained_rows=rows_of_step),
    }, batch_size=4)
    tu.assign_non_tensor(data, dp_size=1, batch_num_tokens=12, global_batch_size=4)
    log_probs = torch.full((16,), -1.0, requires_grad=True)
    loss, _ = ppo_loss(config, {"log_probs": log_probs}, data)
    return torch.autograd.grad(loss, log_probs)[0]

policy = [gradient(rows, 0.0) for rows in (4, 8)]
kl = [gradient(rows, 0.1) - alone for rows, alone in zip((4, 8), policy)]
shares = [round(float(half.abs().sum() / whole.abs().sum()), 3) for whole, half in (policy, kl)]
print("gradient of the second half, policy and KL:", *shares)
assert shares == [0.5, 1.0]

# The clamp of low_var_kl.
def pull(ahead):
    log_prob = torch.tensor(-6.0, requires_grad=True)
    kl_penalty(log_prob, torch.tensor(-6.0 + ahead), "low_var_kl").backward()
    return round(float(log_prob.grad), 2)

print("pull at 2.60 and 2.65 nats:", pull(2.6), pull(2.65) + 0.0)
assert pull(2.6) < -12 and pull(2.65) == pull(-11.5) == 0.0

# bfloat16.
def rollout(number, reward):
    call = Triplet(prompt={"token_ids": [1]}, response={"token_ids": [2], "log_probs": [-1.0]})
    return CompletedRollout(
        rollout_id=str(number), data_id="d", step=1, sample_idx_in_step=0, enqueue_time=0.0, final_reward=reward,
        triplets=[call],
    )

adapter = RolloutAdapter(
    max_prompt_length=2, max_response_length=2, device=torch.device("cpu"), pad_token_id=0,
    trace_aggregator_level="trajectory",
)
batch, _ = adapter.get_train_data_batch([rollout(*row) for row in enumerate([0.901, 0.902, 0.903, 0.904])])
held = batch.batch["token_level_scores"].sum(-1).unique().tolist()
print("rewards:", held)
assert held == [0.90234375]

# Rewards of other types.
print('true, "0.5":', _as_reward_value(True), _as_reward_value("0.5"))
assert _as_reward_value(True) is _as_reward_value("0.5") is None

# Calls.
def kept(*answers_of_calls):
    events = [
        Event(rollout_id="r", attempt_id="a", timestamp=0.0, event_type="model_request", data={
            "response": {"prompt_token_ids": [1], "choices": [{"token_ids": ids} for ids in answers]}
        })
        for answers in answers_of_calls
    ]
    told = _dedupe_model_requests_by_prompt_token_ids([_to_triplet_format(event) for event in events])
    return [event.data["response_token_ids"] for event in told]

print("kept:", kept([[3]], [[4]]), kept([[2], [3]]))
assert kept([[3]], [[4]]) == [[4]] and kept([[2], [3]]) == [[2]]
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/look.py"
