"""A fault for tests: the policy server keeps its first weights. A test of the weight exchange must fail with it.

`trainer.verl.actor_rollout_ref.rollout.checkpoint_manager_class` selects it; no shipped recipe does.
"""

from typing import Any

from verl.checkpoint_engine import CheckpointEngineManager


class StaleWeights(CheckpointEngineManager):
    """Sends the policy server only the weights that training starts with."""

    def update_weights(self, global_steps: int = 0) -> Any:
        """Send weights only before the first step."""
        return None if global_steps else super().update_weights(global_steps)
