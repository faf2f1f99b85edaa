"""A fault for tests: the policy server keeps the weights it started with. It shows that a check of them can fail.

Chosen by `trainer.verl.actor_rollout_ref.rollout.agent.agent_loop_manager_class`, never by a shipped recipe.
"""

from typing import Any

from verl.checkpoint_engine import CheckpointEngineManager

from s3_agent.agl.cpu.driver import NoAgentLoops

_update = CheckpointEngineManager.update_weights


def _update_before_training_only(self: Any, global_steps: int = 0) -> Any:
    return None if global_steps else _update(self, global_steps)


CheckpointEngineManager.update_weights = _update_before_training_only


class StaleWeights(NoAgentLoops):
    """No agent loops, and no weight exchange after the first."""
