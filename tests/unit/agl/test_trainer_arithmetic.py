"""What the trainer makes of rollouts, on Agent Lightning's and verl's own functions.

Each test holds a row of the table in docs/your-own-agent.md.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

pytest.importorskip("agentlightning.verl.trainer")

import agentlightning.verl.trainer as agl
from agentlightning.verl.agl_rollout_manager import CompletedRollout, Triplet
from agentlightning.verl.rollout_adapter import RolloutAdapter
from hypothesis import given
from hypothesis import strategies as st
from verl import DataProto
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, get_adv_estimator_fn, kl_penalty
from verl.utils import tensordict_utils as tu
from verl.workers.config import ActorConfig
from verl.workers.config.actor import PolicyLossConfig
from verl.workers.utils.losses import ppo_loss

from s3_agent.agl.advantages import COMPARED
from s3_agent.agl.verl_config import ESTIMATOR, kl_coefficient
from s3_agent.doctor.checks.batch import REWARD_ALONE

TOKENS = 6
# They compare with a critic, with the batch or with a greedy answer, or refuse groups of one.
NOT_COMPARING = (
    *("gae", "remax", "reinforce_plus_plus", "grpo_passk"),
    *("optimal_token_baseline", "tir_optimal_token_baseline"),
)


def rollout(question: int, number: int, reward: float | None) -> CompletedRollout:
    """One call of TOKENS sampled tokens."""
    response = {"token_ids": [4] * TOKENS, "log_probs": [-0.5] * TOKENS}
    return CompletedRollout(
        rollout_id=f"r{question}-{number}",
        data_id=f"q{question}",
        step=1,
        sample_idx_in_step=question,
        enqueue_time=0.0,
        final_reward=reward,
        triplets=[Triplet(prompt={"token_ids": [1, 2, 3]}, response=response)],
    )


def rows_of(groups: Sequence[Sequence[float | None]], *, lost: int = 0) -> tuple[DataProto, dict[str, Any]]:
    """The rows that Agent Lightning's adapter makes of groups of rewards, without the first `lost` rollouts."""
    played = [rollout(question, n, reward) for question, group in enumerate(groups) for n, reward in enumerate(group)]
    adapter = RolloutAdapter(
        max_prompt_length=4,
        max_response_length=8,
        device=torch.device("cpu"),
        pad_token_id=0,
        trace_aggregator_level="trajectory",
    )
    return adapter.get_train_data_batch(played[lost:])


class FakeServers:
    """Policy servers and checkpoints of a trainer that only computes."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def updated(
    rows: tuple[DataProto, dict[str, Any]], *, estimator: str, mini_batch: int, loss_mode: str = "per_rollout_mean"
) -> tuple[dict[str, Any], DataProto]:
    """What Agent Lightning's own training step logs, and the batch that it hands to the optimizer. No model is run."""
    config = {
        "actor_rollout_ref": {
            "rollout": {"n": 4, "temperature": 1.0},
            "actor": {"ppo_mini_batch_size": mini_batch, "policy_loss": {"loss_mode": loss_mode}},
        },
        "agentlightning": {"max_ppo_update_times": None},
        "algorithm": {
            "adv_estimator": estimator,
            "gamma": 1.0,
            "lam": 1.0,
            "use_kl_in_reward": False,
            "enable_rollout_level_advantage": True,
            "norm_adv_by_std_in_grpo": True,
        },
        "trainer": {"balance_batch": False, "critic_warmup": 0},
    }
    batches: list[DataProto] = []

    def update(batch: DataProto) -> DataProto:
        batches.append(batch)
        return DataProto.from_single_dict(data={}, meta_info={"metrics": {}})

    def log_probs(batch: DataProto) -> tuple[DataProto, float]:
        return DataProto.from_dict({"old_log_probs": torch.zeros(batch.batch["responses"].shape)}), 0.0

    trainer: Any = object.__new__(agl.AgentLightningRayPPOTrainer)
    trainer.config, trainer.global_steps = OmegaConf.create(config), 1
    trainer.use_reference_policy = trainer.use_critic = False
    trainer.checkpoint_manager = trainer.llm_server_manager = FakeServers()
    trainer._next_train_batch_dict_for_rollout = lambda: {"anything": torch.zeros(1)}
    trainer._get_gen_batch = lambda batch: batch
    trainer._rollout = lambda *_, **__: rows
    trainer._compute_old_log_prob = log_probs
    trainer._update_actor = update
    metrics, _ = trainer._train_step({}, False)
    [batch] = batches
    return metrics, batch


def advantages_of(batch: DataProto) -> torch.Tensor:
    """One advantage a row: what the loss sums over a row's tokens, times the rows of the step."""
    return batch.batch["advantages"].float().sum(-1) * len(batch)


def lone_rewards(batch: DataProto) -> list[float]:
    """The rewards of the rows that are alone in their group."""
    sizes = Counter(batch.non_tensor_batch["uid"])
    rewards = batch.batch["token_level_scores"].float().sum(-1).tolist()
    return [reward for group, reward in zip(batch.non_tensor_batch["uid"], rewards, strict=True) if sizes[group] == 1]


MIXED = [[1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0]] * 40


@pytest.fixture(autouse=True)
def same_draws() -> Iterator[None]:
    """Agent Lightning draws the rows that it drops from the global generator."""
    before = random.getstate()
    random.seed(7)
    yield
    random.setstate(before)


def test_one_lost_rollout_of_480_drops_half_and_leaves_groups_of_one() -> None:
    metrics, batch = updated(rows_of(MIXED, lost=1), estimator=ESTIMATOR, mini_batch=60)
    assert metrics["training/n_sample_collected"] == 479
    assert metrics["training/n_sample_dropped/random"] == 239
    assert len(batch) == metrics["training/n_sample_trained"] == 240
    assert len(lone_rewards(batch)) > 20


def test_verls_grpo_takes_the_reward_of_a_group_of_one_as_its_advantage() -> None:
    """The fault: were it gone, the estimator of our own would be needless."""
    _, batch = updated(rows_of(MIXED, lost=1), estimator="grpo", mini_batch=60)
    bias = sum(lone_rewards(batch)) / len(batch)
    assert bias > 0.05
    assert float(advantages_of(batch).mean()) == pytest.approx(bias, abs=2e-3)  # in bfloat16


def test_a_group_of_one_counts_0_and_the_batchs_mean_is_0() -> None:
    _, batch = updated(rows_of(MIXED, lost=1), estimator=ESTIMATOR, mini_batch=60)
    advantages, sizes = advantages_of(batch), Counter(batch.non_tensor_batch["uid"])
    assert float(advantages.mean()) == pytest.approx(0.0, abs=1e-6)
    for advantage, group in zip(advantages.tolist(), batch.non_tensor_batch["uid"], strict=True):
        assert (advantage == 0.0) or sizes[group] > 1
    assert COMPARED.groups_of_one == len(lone_rewards(batch))


def test_a_group_of_equal_rewards_that_loses_all_but_one_row_counts_0() -> None:
    """Rows of groups with equal rewards are dropped first, and not in whole groups."""
    equal = [[1.0] * 4] * 60 + MIXED[:60]
    _, batch = updated(rows_of(equal, lost=1), estimator="grpo", mini_batch=110)
    assert float(advantages_of(batch).mean()) > 0.0
    _, batch = updated(rows_of(equal, lost=1), estimator=ESTIMATOR, mini_batch=110)
    assert float(advantages_of(batch).mean()) == pytest.approx(0.0, abs=1e-6)


def test_a_whole_batch_has_verls_own_advantages() -> None:
    _, theirs = updated(rows_of(MIXED), estimator="grpo", mini_batch=60)
    _, ours = updated(rows_of(MIXED), estimator=ESTIMATOR, mini_batch=60)
    assert torch.allclose(advantages_of(ours), advantages_of(theirs), atol=2e-2)  # theirs in bfloat16
    assert COMPARED.groups_of_one == 0


def test_rollouts_of_spare_questions_replace_those_without_a_gradient() -> None:
    metrics, batch = updated(rows_of([[1.0] * 4, *MIXED[:5], [0.0] * 4]), estimator=ESTIMATOR, mini_batch=5)
    assert metrics["training/n_sample_dropped/same_reward"] == 8
    assert metrics["training/n_sample_dropped/random"] == 0
    assert metrics["training/n_zero_adv_groups"] == 0
    assert set(Counter(batch.non_tensor_batch["uid"]).values()) == {4}


@pytest.mark.parametrize("name", sorted(name for name in ADV_ESTIMATOR_REGISTRY if name not in NOT_COMPARING))
def test_the_doctor_knows_which_estimators_take_a_lone_reward(name: str) -> None:
    rewards = torch.tensor([[1.0], [0.0], [1.0], [0.0], [1.0]])
    estimated = get_adv_estimator_fn(name)(
        token_level_rewards=rewards,
        response_mask=torch.ones_like(rewards),
        index=np.array(["a", "a", "a", "a", "b"], dtype=object),
        config=OmegaConf.create({"gamma": 1.0}),
    )
    assert (float(estimated[0][4, 0]) != 0.0) is (name in REWARD_ALONE)


_GROUPS = st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=5), min_size=1, max_size=6)


@given(_GROUPS, st.booleans(), st.randoms(use_true_random=False))
def test_advantages_of_any_groups_sum_to_0(groups: list[list[float]], divided: bool, order: random.Random) -> None:
    rows = [(f"q{number}", reward) for number, group in enumerate(groups) for reward in group]
    order.shuffle(rows)
    index = np.array([group for group, _ in rows])
    mask = torch.ones(len(rows), 3, dtype=torch.long)
    rewards = torch.zeros(len(rows), 3, dtype=torch.bfloat16)
    rewards[:, -1] = torch.tensor([reward for _, reward in rows])
    estimate = get_adv_estimator_fn(ESTIMATOR)
    advantages, returns = estimate(
        token_level_rewards=rewards, response_mask=mask, index=index, config={"norm_adv_by_std_in_grpo": divided}
    )
    assert advantages.shape == returns.shape == rewards.shape and advantages.dtype == torch.float32
    for number, group in enumerate(groups):
        of_group = advantages[index == f"q{number}"]
        assert torch.equal(of_group[:, :1].expand(-1, 3), of_group), "one advantage a rollout"
        assert float(of_group[:, 0].sum()) == pytest.approx(0.0, abs=1e-4)
        if len(set(group)) > 1:
            assert (
                of_group[:, 0].argmax()
                == torch.tensor([reward for name, reward in rows if name == f"q{number}"]).argmax()
            ), "the best of a group gains most"
    assert estimate.groups_of_one == sum(len(group) == 1 for group in groups)


def gradient(batch: DataProto, *, kl_loss_coef: float, loss_mode: str) -> torch.Tensor:
    """Of verl's own loss of an update with these rows, by the log-probs of all tokens. One rank, one micro batch."""
    config = ActorConfig(
        strategy="fsdp2",
        use_kl_loss=True,
        kl_loss_coef=kl_loss_coef,
        policy_loss=PolicyLossConfig(loss_mode=loss_mode),
        ppo_micro_batch_size_per_gpu=1,
        rollout_n=1,
    )
    mask = batch.batch["response_mask"]
    data = batch.batch.select("prompts", "responses", "attention_mask", "response_mask", "advantages")
    data["old_log_probs"], data["ref_log_prob"] = torch.full(mask.shape, -1.0), torch.full(mask.shape, -1.5)
    tu.assign_non_tensor(data, dp_size=1, batch_num_tokens=int(mask.sum()), global_batch_size=len(mask))
    log_probs = torch.full((int(data["attention_mask"].sum()),), -1.0, requires_grad=True)
    loss, _ = ppo_loss(config, {"log_probs": log_probs}, data)
    [found] = torch.autograd.grad(loss, log_probs)
    return found


@pytest.mark.parametrize(
    ("loss_mode", "share"), [("per_rollout_mean", 0.5), ("cispo_per_rollout_mean", 0.5), ("vanilla", 1.0)]
)
def test_of_two_updates_each_has_half_of_agls_loss_and_the_whole_of_verls_kl(loss_mode: str, share: float) -> None:
    """With the coefficient halved, policy and KL weigh what they do where the same rows are a step of their own."""
    _, whole = updated(rows_of(MIXED[:4]), estimator=ESTIMATOR, mini_batch=4, loss_mode=loss_mode)
    _, step = updated(rows_of(MIXED[:8]), estimator=ESTIMATOR, mini_batch=4, loss_mode=loss_mode)
    first: Any = step[slice(0, 16)]
    assert len(step) == 32 and torch.equal(whole.batch["responses"], first.batch["responses"])
    policy, policy_of_first = (gradient(rows, kl_loss_coef=0.0, loss_mode=loss_mode) for rows in (whole, first))
    assert torch.allclose(policy_of_first, policy * share)
    both, both_of_first = (gradient(rows, kl_loss_coef=0.1, loss_mode=loss_mode) for rows in (whole, first))
    assert torch.allclose(both_of_first - policy_of_first, both - policy, atol=1e-7)
    assert float((both - policy).abs().max()) > 1e-4
    sizes = {
        "data": {"train_batch_size": 8},
        "actor_rollout_ref": {"actor": {"ppo_mini_batch_size": 4, "policy_loss": {"loss_mode": loss_mode}}},
        "agentlightning": {"max_ppo_update_times": None},
    }
    corrected = kl_coefficient(0.1, OmegaConf.create(sizes))
    assert torch.allclose(gradient(first, kl_loss_coef=corrected, loss_mode=loss_mode), both * share, atol=1e-7)


@pytest.mark.parametrize(("kind", "pulls"), [("low_var_kl", False), ("low_var_kl+", True)])
def test_the_low_variance_kl_does_not_pull_where_the_reference_is_far_ahead(kind: str, pulls: bool) -> None:
    """verl clamps the estimate at 10, which it reaches where the reference is 2.61 nats ahead; `+` keeps a gradient."""

    def pull(ahead: float) -> float:
        log_prob: Any = torch.tensor(-6.0, requires_grad=True)
        reference: Any = torch.tensor(-6.0 + ahead)
        kl_penalty(log_prob, reference, kind).backward()
        return float(log_prob.grad)

    assert pull(2.6) < -2.5
    assert (pull(2.65) != 0.0) is pulls
    assert (pull(-11.5) != 0.0) is pulls, "nor where it is as far behind"


def test_rewards_are_held_in_bfloat16() -> None:
    batch, _ = rows_of([[0.901, 0.902, 0.903, 0.904]])
    scores = batch.batch["token_level_scores"]
    assert scores.dtype == torch.bfloat16
    assert scores.sum(-1).unique().tolist() == [0.90234375]
    metrics, step = updated((batch, {}), estimator=ESTIMATOR, mini_batch=1)
    assert metrics["training/n_zero_adv_groups"] == 1
    assert float(step.batch["advantages"].abs().max()) == 0.0


def test_a_rollout_without_a_reward_trains_as_0() -> None:
    batch, metrics = rows_of([[1.0, None, 1.0, 1.0]])
    assert batch.batch["token_level_scores"].sum(-1).tolist() == [1.0, 0.0, 1.0, 1.0]
    assert metrics["training/n_rollouts_w_reward"] == 3
