"""A fault for tests: the policy server keeps the weights it started with. It shows that a check of them can fail.

Chosen by `trainer.verl.actor_rollout_ref.rollout.checkpoint_manager_class`, never by a shipped recipe.
"""

from typing import Any

from verl.checkpoint_engine import CheckpointEngineManager


class StaleWeights(CheckpointEngineManager):
    """Gives the policy server no weights after those that training starts with."""

    def update_weights(self, global_steps: int = 0) -> Any:
        """Exchange weights only before the first step."""
        return None if global_steps else super().update_weights(global_steps)
