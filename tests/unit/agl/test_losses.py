"""The policy losses' additions: metrics of likelihood that change nothing, and LLDS against a plain computation."""

from typing import Any

import pytest
import torch

pytest.importorskip("agentlightning.verl.trainer")

from hypothesis import given
from hypothesis import strategies as st
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, compute_policy_loss_vanilla, get_policy_loss_fn
from verl.workers.config import ActorConfig

from s3_agent.agl.llds import LldsGate
from s3_agent.agl.losses import LldsLossConfig, action_numbers, likelihood_drops, watched
from s3_agent.rollout.step_metrics import likelihood_metrics

GATES: tuple[LldsGate, ...] = ("action", "response", "token")
# Two actions around two tokens that were read; an incorrect response; one whose group has equal rewards.
DROPS = torch.tensor([[0.3, -0.1, 9.0, 9.0, 0.2, -0.5], [0.4, 0.4, 0, 0, 0, 0], [0.1, 0, 0, 0, 0, 0]])
MASK = torch.tensor([[1, 1, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]).bool()
ADVANTAGES = torch.tensor([[1.0], [-1.0], [0.0]]).expand(3, 6)


def actor(*, weight: float, gate: LldsGate = "action", answer_weight: float = 1.0) -> ActorConfig:
    settings = LldsLossConfig(llds_weight=weight, llds_gate=gate, llds_answer_weight=answer_weight)
    config = ActorConfig(strategy="fsdp2", rollout_n=4, ppo_micro_batch_size_per_gpu=1, policy_loss=settings)
    config.global_batch_info.update(dp_size=1, batch_num_tokens=None, global_batch_size=None, loss_scale_factor=None)
    return config


def test_an_action_is_a_run_of_what_the_policy_wrote() -> None:
    assert action_numbers(MASK).tolist() == [[0, 0, -1, -1, 1, 1], [0, 0, -1, -1, -1, -1], [0, -1, -1, -1, -1, -1]]
    late = torch.tensor([[0, 1, 0, 1]]).bool()
    assert action_numbers(late).tolist() == [[-1, 0, -1, 1]]


@pytest.mark.parametrize(
    ("gate", "sums"), [("action", [0.3, 0, 0.1]), ("token", [0.5, 0, 0.1]), ("response", [0, 0, 0.1])]
)
def test_what_a_gate_lets_through(gate: LldsGate, sums: list[float]) -> None:
    found = likelihood_drops(DROPS, torch.zeros(3, 6), ADVANTAGES, MASK, gate=gate)
    assert found.sum(-1).tolist() == pytest.approx(sums)


def test_the_last_action_is_weighted_as_the_answer() -> None:
    found = likelihood_drops(DROPS, torch.zeros(3, 6), ADVANTAGES, MASK, gate="token", answer_weight=0.5)
    assert found.sum(-1).tolist() == pytest.approx([0.3 + 0.2 / 2, 0, 0.1 / 2])


def plain(rows: list[dict[str, Any]], gate: LldsGate, answer_weight: float) -> float:
    """The penalty of rows of `actions` (lists of drops), in words of arXiv 2512.04220: a mean over all responses."""
    total = 0.0
    for row in rows:
        actions, tokens = row["actions"], sum(map(len, row["actions"]))
        if row["advantage"] < 0 or not tokens:
            continue
        if gate == "response" and sum(map(sum, actions)) <= 0:
            continue
        for number, drops in enumerate(actions, 1):
            if gate == "action" and sum(drops) <= 0:
                continue
            weight = answer_weight if number == len(actions) else 1.0
            total += weight * sum(max(0.0, drop) for drop in drops) / tokens
    return total / max(1, sum(bool(row["actions"]) for row in rows))


# Multiples of 1/8 are exact in float32, so that a sum that is 0 is 0 on both sides.
NATS = st.integers(-24, 24).map(lambda eighths: eighths / 8)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "actions": st.lists(st.lists(NATS, min_size=1, max_size=4), min_size=1, max_size=3),
            "read": st.integers(1, 3),
            "advantage": st.sampled_from([-1.5, 0.0, 0.5]),
        }
    ),
    min_size=1,
    max_size=5,
)


def tensors(rows: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Old log-probs, mask and advantages of rows whose new log-probs are 0; what was read holds a drop of 7."""
    drops, masks = [], []
    for row in rows:
        values: list[float] = []
        written: list[bool] = []
        for action in row["actions"]:
            values += [*action, *[7.0] * row["read"]]
            written += [*[True] * len(action), *[False] * row["read"]]
        drops.append(values)
        masks.append(written)
    width = max(map(len, drops))
    old = torch.tensor([values + [0.0] * (width - len(values)) for values in drops])
    mask = torch.tensor([values + [False] * (width - len(values)) for values in masks])
    return old, mask, torch.tensor([[row["advantage"]] for row in rows]).expand(-1, width)


@given(ROWS, st.sampled_from(GATES), st.sampled_from([0.0, 0.5, 1.0]))
def test_llds_is_what_the_paper_writes(rows: list[dict[str, Any]], gate: LldsGate, answer_weight: float) -> None:
    old, mask, advantages = tensors(rows)
    new = torch.zeros_like(old)
    loss = watched(lambda **_: (torch.tensor(0.0), {}))
    value, _ = loss(old, new, advantages, mask, config=actor(weight=0.25, gate=gate, answer_weight=answer_weight))
    assert value.item() == pytest.approx(0.25 * plain(rows, gate, answer_weight), rel=1e-5, abs=1e-6)


@given(ROWS, st.sampled_from(GATES))
def test_a_likelihood_that_does_not_fall_costs_nothing(rows: list[dict[str, Any]], gate: LldsGate) -> None:
    old, mask, advantages = tensors(rows)
    assert not likelihood_drops(old, old + old.abs(), advantages, mask, gate=gate).any()
    assert not likelihood_drops(old, old, advantages, mask, gate=gate).any(), "the first update of a step"


@pytest.mark.parametrize("mode", ["vanilla", "per_rollout_mean", "cispo_per_rollout_mean", "gspo"])
def test_without_llds_every_loss_keeps_value_and_gradient(mode: str) -> None:
    base = get_policy_loss_fn(mode).__wrapped__  # pyright: ignore[reportFunctionMemberAccess]
    found = []
    losses: list[Any] = [base, POLICY_LOSS_REGISTRY[mode]]
    for loss in losses:
        new = torch.zeros(3, 6, requires_grad=True)
        value, metrics = loss(
            old_log_prob=DROPS, log_prob=new, advantages=ADVANTAGES, response_mask=MASK, config=actor(weight=0.0)
        )
        value.backward()
        found.append((value.item(), new.grad, metrics))
    (value, gradient, metrics), (ours, our_gradient, our_metrics) = found
    assert ours == value and torch.equal(our_gradient, gradient)
    assert {name: our_metrics[name] for name in metrics} == metrics


def test_every_micro_batch_reports_the_same_metrics() -> None:
    """verl refuses ranks whose lists of a metric differ in length."""
    names = []
    for chosen in (slice(0, 1), slice(1, 2), slice(2, 3)):
        _, metrics = watched(compute_policy_loss_vanilla)(
            DROPS[chosen], torch.zeros(1, 6), ADVANTAGES[chosen], MASK[chosen], config=actor(weight=0.1)
        )
        names.append(set(metrics))
    assert names[0] == names[1] == names[2]


def test_the_means_of_likelihood_are_over_tokens() -> None:
    logged: dict[str, float] = {"actor/pg_loss": 1.0}
    _, metrics = watched(lambda **_: (torch.tensor(0.0), {}))(
        DROPS, torch.zeros(3, 6), ADVANTAGES, MASK, config=actor(weight=0.0)
    )
    assert likelihood_metrics(logged | metrics) == pytest.approx(
        {
            "actor/pg_loss": 1.0,
            "actor/sampled_entropy": -(-0.1 + 0.8 + 0.1) / 7,
            "actor/log_prob/correct": -0.1 / 4,
            "actor/first_log_prob/correct": 0.2 / 2,
            "actor/log_prob_change/correct": 0.1 / 4,
            "actor/log_prob/incorrect": 0.4,
            "actor/first_log_prob/incorrect": 0.4,
            "actor/log_prob_change/incorrect": -0.4,
        }
    )
