"""Policy losses that also say where the policy moves, and LLDS, a term that holds the likelihood of what was right.

A run of GRPO with searches can collapse while its reward still looks well: the likelihood of correct responses falls
first (arXiv 2512.04220). LLDS adds a penalty for tokens of correct responses that an update made less likely.

verl loads this module with the model, in the processes that train it (`model.external_lib`). It wraps every policy loss
that is registered with verl: each keeps its value and its gradient, bit for bit, as long as no LLDS is configured. A
trainer of your own names the module in VERL_USE_EXTERNAL_MODULES.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import agentlightning.verl.per_rollout_loss  # noqa: F401  registers Agent Lightning's losses before they are wrapped
import torch
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, agg_loss
from verl.workers.config.actor import PolicyLossConfig

from s3_agent.agl.llds import LldsGate
from s3_agent.rollout.step_metrics import COUNTS, SUMS

Loss = Callable[..., tuple[torch.Tensor, dict[str, Any]]]


@dataclass
class LldsLossConfig(PolicyLossConfig):
    """verl's settings of a policy loss with those of LLDS, selected by `policy_loss._target_`."""

    llds_weight: float = 0.0
    llds_gate: LldsGate = "action"
    llds_answer_weight: float = 1.0


def action_numbers(response_mask: torch.Tensor) -> torch.Tensor:
    """For each token of a bool mask (rows, tokens) the number of its action, from 0; -1 where the mask is False.

    An action is a run of tokens that the policy wrote; what it read lies between two of them.
    """
    mask = response_mask.bool()
    begins = mask & ~torch.nn.functional.pad(mask, (1, 0))[:, :-1]
    return torch.where(mask, begins.long().cumsum(-1) - 1, -1)


def likelihood_drops(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    *,
    gate: LldsGate = "action",
    answer_weight: float = 1.0,
) -> torch.Tensor:
    """How much less likely each token of a response with an advantage of 0 or more is than before the step, in nats.

    All are of shape (rows, tokens), as the result, which is 0 for other responses, for tokens that became more likely
    and for what the gate leaves out: with `action` only tokens of actions that became less likely as a whole count,
    with `response` only those of such responses, with `token` all. Tokens of a row's last action, which holds the
    answer, are weighted with `answer_weight`.
    """
    mask = response_mask.bool()
    drop = torch.where(mask, old_log_prob.detach() - log_prob, 0.0)
    kept = mask & (advantages >= 0)
    if gate == "response":
        kept = kept & (drop.detach().sum(-1, keepdim=True) > 0)
    elif gate == "action":
        numbers = action_numbers(mask)
        sums = drop.new_zeros(*drop.shape).scatter_add_(-1, numbers.clamp_min(0), drop.detach())
        kept = kept & (sums.gather(-1, numbers.clamp_min(0)) > 0)
    penalty = torch.where(kept, drop.clamp_min(0.0), 0.0)
    if answer_weight != 1.0:
        numbers = action_numbers(mask)
        last = mask & (numbers == numbers.amax(-1, keepdim=True))
        penalty = torch.where(last, penalty * answer_weight, penalty)
    return penalty


def movement(
    old_log_prob: torch.Tensor, log_prob: torch.Tensor, advantages: torch.Tensor, response_mask: torch.Tensor
) -> dict[str, float]:
    """Sums over the tokens of a micro batch, in nats, for responses of a positive (`correct`) and of a negative
    advantage (`incorrect`): log-probs before the step, those of the first action, how they changed since, and counts.
    `sampled_entropy` is over all responses: the mean of -log-prob over tokens that were drawn estimates the entropy
    without bias.

    Sums and counts, because verl averages over micro batches and needs the same keys from each: their ratios are means
    over all tokens (`s3_agent.rollout.step_metrics.likelihood_metrics`).
    """
    mask, found = response_mask.bool(), dict[str, torch.Tensor]()
    old, change, first = old_log_prob.detach(), (log_prob - old_log_prob).detach(), action_numbers(mask) == 0
    found[f"{SUMS}sampled_entropy"] = torch.where(mask, -old, 0.0).sum().double()
    found[f"{COUNTS}sampled_entropy"] = mask.sum().double()
    for name, chosen in (("correct", mask & (advantages > 0)), ("incorrect", mask & (advantages < 0))):
        for kind, values, where in (
            ("log_prob", old, chosen),
            ("first_log_prob", old, chosen & first),
            ("log_prob_change", change, chosen),
        ):
            found[f"{SUMS}{kind}/{name}"] = torch.where(where, values, 0.0).sum().double()
            found[f"{COUNTS}{kind}/{name}"] = where.sum().double()
    return dict(zip(found, torch.stack([*found.values()]).tolist(), strict=True))  # one transfer from the GPU


def watched(base: Loss) -> Loss:
    """The loss with the metrics of `movement`, and with LLDS if its weight is not 0."""

    @wraps(base)
    def loss(
        old_log_prob: torch.Tensor,
        log_prob: torch.Tensor,
        advantages: torch.Tensor,
        response_mask: torch.Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        value, metrics = base(
            old_log_prob=old_log_prob,
            log_prob=log_prob,
            advantages=advantages,
            response_mask=response_mask,
            loss_agg_mode=loss_agg_mode,
            config=config,
            rollout_is_weights=rollout_is_weights,
        )
        metrics = {**metrics, **movement(old_log_prob, log_prob, advantages, response_mask)}
        settings = getattr(config, "policy_loss", None)
        if not isinstance(settings, LldsLossConfig) or not settings.llds_weight:
            return value, metrics
        drops = likelihood_drops(
            old_log_prob,
            log_prob,
            advantages,
            response_mask,
            gate=settings.llds_gate,
            answer_weight=settings.llds_answer_weight,
        )
        # A mean over responses, whatever the policy's own loss is averaged over.
        penalty = agg_loss(drops, response_mask, "seq-mean-token-mean", **config.global_batch_info)
        trained = response_mask.sum().clamp_min(1)
        metrics["actor/llds_tokens"] = ((drops > 0).sum() / trained).item()
        metrics["actor/llds_drop"] = (drops.detach().sum() / trained).item()
        return value + settings.llds_weight * penalty, metrics

    return loss


POLICY_LOSS_REGISTRY.update({name: watched(base) for name, base in POLICY_LOSS_REGISTRY.items()})
