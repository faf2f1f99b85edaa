"""`LitAgent` of Agent Lightning 0.3.0: it returns the reward, and the proxy of AGL's store records the policy calls."""

from typing import Any

from agentlightning import LitAgent  # pyright: ignore[reportAttributeAccessIssue]

from s3_agent.agl.legacy.endpoint import model_of, play_at
from s3_agent.agl.one_task import OneTaskSettings


class S3LitAgent(LitAgent):  # pyright: ignore[reportUntypedBaseClass]
    """s3 for `Trainer(...).fit(S3LitAgent(), ...)`. Without `settings` it reads the `S3_AGENT_*` variables."""

    def __init__(self, settings: OneTaskSettings | None = None, *, resource: str = "main_llm") -> None:
        super().__init__()
        self._settings = settings or OneTaskSettings.from_environment()
        self._resource = resource

    async def rollout_async(self, task: Any, resources: dict[str, Any], rollout: Any) -> float:
        """Play one task and return its reward. Raises S3AgentError: the attempt fails and has no reward."""
        model = model_of(resources, name=self._resource)
        # The address of a model behind the proxy contains the rollout and the attempt.
        routed = hasattr(model, "get_base_url")
        url = model.get_base_url(rollout.rollout_id, rollout.attempt.attempt_id) if routed else model.endpoint
        outcome, _ = await play_at(task, self._settings, url=url, model=model, key=model.api_key)
        return outcome.reward.value
