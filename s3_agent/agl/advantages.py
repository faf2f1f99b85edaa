"""GRPO's advantage as verl computes it, except that a rollout that is alone in its group has the advantage 0.

Agent Lightning cuts a step's rows down to whole mini-batches and drops the rest at random, so one lost rollout can
leave dozens of questions with a single row. verl's `grpo` has nothing to compare such a row with: its advantage is its
raw reward, and the batch's mean is no longer 0. Importing this module registers the estimator with verl under
`ESTIMATOR`. The trainer's process imports it when it starts to log (`s3_agent.agl.tracking`); your own trainer names
the module in VERL_USE_EXTERNAL_MODULES.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage, register_adv_est

from s3_agent.agl.verl_config import ESTIMATOR

log = logging.getLogger(__name__)


class ComparedRollouts:
    """The estimator. `groups_of_one` counts the last batch's groups with one rollout left; None before the first."""

    groups_of_one: int | None = None

    def __call__(
        self,
        token_level_rewards: torch.Tensor,
        response_mask: torch.Tensor,
        index: Sequence[Any],
        config: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Advantages and returns in float32, both of the shape (rows, response tokens) of rewards and mask.

        `index` names the group of each row. Rewards arrive in bfloat16, which would also round the mean of a group, so
        they are converted.
        """
        divided = config is None or config.get("norm_adv_by_std_in_grpo", True)
        advantages, _ = compute_grpo_outcome_advantage(
            token_level_rewards.float(), response_mask, index, norm_adv_by_std_in_grpo=divided
        )
        sizes = Counter(index)
        self.groups_of_one = sum(size == 1 for size in sizes.values())
        if self.groups_of_one:
            log.warning("%d of %d groups have one rollout left and count 0", self.groups_of_one, len(sizes))
        alone = torch.tensor([sizes[group] == 1 for group in index], device=advantages.device)
        advantages = advantages.masked_fill(alone.unsqueeze(-1), 0.0)
        return advantages, advantages


COMPARED = register_adv_est(ESTIMATOR)(ComparedRollouts())
