"""`LitAgent` of Agent Lightning 0.1.2, the version that the original s3 example names.

Its trainer reads prompt and response ids from a rollout's triplets. We return them with the reward, exactly as they
were sent and sampled, so no tracer is needed.
"""

from typing import Any

from agentlightning import LitAgent, Rollout, Triplet  # pyright: ignore[reportAttributeAccessIssue]

from s3_agent.agl.legacy.endpoint import model_of, play_at
from s3_agent.agl.one_task import OneTaskSettings


class S3LitAgent(LitAgent):  # pyright: ignore[reportUntypedBaseClass]
    """s3 for `Trainer(...).fit(S3LitAgent(), ...)`. Without `settings` it reads the `S3_AGENT_*` variables."""

    def __init__(self, settings: OneTaskSettings | None = None, *, resource: str = "main_llm") -> None:
        super().__init__()
        self._settings = settings or OneTaskSettings.from_environment()
        self._resource = resource

    async def training_rollout_async(self, task: Any, rollout_id: str, resources: dict[str, Any]) -> Any:
        """Play one task: its reward, and a triplet for each policy call. Raises S3AgentError; then none is trained."""
        model = model_of(resources, name=self._resource)
        outcome, calls = await play_at(task, self._settings, url=model.endpoint, model=model, key=None)
        triplets = [
            Triplet(prompt={"token_ids": prompt}, response={"token_ids": response}) for prompt, response in calls
        ]
        triplets[-1].reward = outcome.reward.value
        return Rollout(rollout_id=rollout_id, final_reward=outcome.reward.value, triplets=triplets)
