"""What both 0.x adapters share: finding the model among the resources, and playing one task with it."""

from collections.abc import Mapping, Sequence
from typing import Any

from s3_agent.agl.one_task import OneTaskSettings, play_one, policy_at
from s3_agent.clients.connections import async_client
from s3_agent.clients.http import bearer
from s3_agent.clients.policy import Completion, TokenPolicy
from s3_agent.errors import ConfigError
from s3_agent.rollout.runner import Outcome
from s3_agent.types import Task

SAMPLING = ("temperature", "top_p")


class RecordingPolicy(TokenPolicy):
    """A policy that records the token ids of each call."""

    def __init__(self, policy: TokenPolicy) -> None:
        super().__init__(policy.tokenizer)
        self.calls: list[tuple[list[int], list[int]]] = []
        self._policy = policy

    async def window(self) -> int | None:
        """The window of the policy."""
        return await self._policy.window()

    async def complete(self, prompt_ids: Sequence[int], *, max_tokens: int, stop: Sequence[str]) -> Completion:
        """Complete with the policy, and record the call."""
        completion = await self._policy.complete(prompt_ids, max_tokens=max_tokens, stop=stop)
        self.calls.append((list(prompt_ids), list(completion.token_ids)))
        return completion


def model_of(resources: Mapping[str, Any], *, name: str) -> Any:
    """The `LLM` resource with the name `name`, else the only one. Raises ConfigError."""
    if name in resources:
        return resources[name]
    models = [each for each in resources.values() if hasattr(each, "endpoint")]
    if len(models) != 1:
        raise ConfigError(
            f"{len(models)} of the resources are models, and none has the name {name!r}",
            remedy="give the agent the name of the model's resource: resource=…",
        )
    return models[0]


async def play_at(
    row: Any, settings: OneTaskSettings, *, url: str, model: Any, key: str | None
) -> tuple[Outcome, list[tuple[list[int], list[int]]]]:
    """Play a dataset row with the policy at `url`: the outcome, and prompt and response ids of each policy call.

    Raises S3AgentError for every failure, because in 0.x as well, a failure must never become a reward.
    """
    task = Task.from_row(dict(row))
    sampling = {field: model.sampling_parameters[field] for field in SAMPLING if field in model.sampling_parameters}
    async with async_client(timeout=settings.timeout, headers=bearer(key)) as client:
        policy = RecordingPolicy(policy_at(client, settings, url, model=model.model, **sampling))
        return await play_one(task, settings, policy=policy), policy.calls
