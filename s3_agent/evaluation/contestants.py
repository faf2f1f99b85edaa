"""Who is evaluated: an agent under a label, with its policy, its sampling, and where its answer comes from."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from s3_agent.errors import ConfigError
from s3_agent.evaluation.stages import code_of, key_of
from s3_agent.rollout.runner import AgentSettings
from s3_agent.types import Task

SamplingName = Literal["published", "greedy"]

_EPISODE_CODE = ("s3_agent.agents", "s3_agent.tags", "s3_agent.fitting", "s3_agent.selection", "s3_agent.types")


class Sampling(BaseModel):
    """How a policy is sampled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)


GREEDY = Sampling(temperature=0.0)
PUBLISHED = {
    "s3": Sampling(temperature=0.6, top_p=0.95),
    "search_r1": Sampling(temperature=1.0, top_p=0.95),
    "search_r1_agl_chat": Sampling(temperature=1.0, top_p=0.95),
}
"""What the published numbers were sampled with (spec §1.6, §8)."""


class PolicyUnderTest(BaseModel):
    """A policy and how it is reached: at `url`, at the generator's address, or started here from the folder or hub
    name `model`. `request` is merged into chat requests.

    `identity` is what tells it from another policy: a hash of its files, or what its server says of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    mode: Literal["tokens", "chat"] = "tokens"
    url: str | None = None
    at_generator: bool = False
    request: dict[str, Any] = {}
    identity: dict[str, Any]


class Contestant(BaseModel):
    """One row of the result table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    settings: AgentSettings
    sampling: Sampling
    policy: PolicyUnderTest

    def key(self, *, index: dict[str, Any], seed: int) -> str:
        """A key of all that its episodes depend on but the question: how an answer is scored is no part of it."""
        agent = self.settings.model_dump(mode="json", exclude={"reward"})
        policy = self.policy.model_dump(mode="json", include={"mode", "request", "identity"})
        return key_of("episode", agent, policy, self.sampling.model_dump(), index, seed, code_of(*_EPISODE_CODE))


def question_key(task: Task) -> str:
    """A key of what an agent sees of a task."""
    return key_of(task.model_dump(mode="json", include={"question", "prompt", "initial_passages"}))


def sampling_of(name: str, mode: SamplingName) -> Sampling:
    """How the agent `name` is sampled."""
    if mode == "greedy":
        return GREEDY
    if name not in PUBLISHED:
        raise ConfigError(f"there is no published sampling for {name}", remedy="give --sampling greedy")
    return PUBLISHED[name]
