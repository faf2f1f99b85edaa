"""What is evaluated: an agent under a label, with its policy, its sampling, and the source of its answer."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from s3_agent.agents.methods import Method, Sampling
from s3_agent.clients.tokenizer import ChatTemplate
from s3_agent.evaluation.stages import code_of, key_of
from s3_agent.rollout.runner import AgentSettings
from s3_agent.types import Task

SamplingName = Literal["published", "greedy"]

GREEDY = Sampling(temperature=0.0)
_EPISODE_CODE = (
    "s3_agent.agents",
    "s3_agent.clients.chat_policy",
    "s3_agent.clients.model_server",
    "s3_agent.clients.policy",
    "s3_agent.clients.replies",
    "s3_agent.clients.tokenizer",
    "s3_agent.tags",
    "s3_agent.fitting",
    "s3_agent.selection",
    "s3_agent.types",
)


_SHOWN = ("mode", "request", "template", "context_tokens", "identity")
"""The fields of a policy that its episodes depend on."""


class PolicyUnderTest(BaseModel):
    """A policy and where to reach it: at `url`, at the generator's address, or started here from `model` (a folder or
    hub name). `request` is merged into chat requests. `context_tokens` is its window if its server reports none.

    `identity` distinguishes it from other policies: a hash of its files, or what its server reports.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    mode: Literal["tokens", "chat"] = "tokens"
    url: str | None = None
    at_generator: bool = False
    request: dict[str, Any] = {}
    template: ChatTemplate = ChatTemplate()
    context_tokens: int | None = None
    identity: dict[str, Any]


class Contestant(BaseModel):
    """One row of the result table. `policy` is None for a method that calls no policy."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    settings: AgentSettings
    sampling: Sampling | None = None
    policy: PolicyUnderTest | None = None

    @property
    def name(self) -> str:
        """The agent's name: the label without the source of answers."""
        return self.label.partition(":")[0]

    def key(self, *, index: dict[str, Any], seed: int) -> str:
        """A key of everything that its episodes depend on, except the question. Scoring settings are not in it."""
        agent = self.settings.model_dump(mode="json", exclude={"reward", "answers", "layout"})
        policy = self.policy and self.policy.model_dump(mode="json", include=set(_SHOWN))
        sampling = self.sampling and self.sampling.model_dump()
        return key_of("episode", agent, policy, sampling, index, seed, code_of(*_EPISODE_CODE))

    @property
    def asks_generator_model(self) -> bool:
        """Whether it needs the generator's server, for answers or as the policy."""
        return self.settings.asks_generator or (self.policy is not None and self.policy.at_generator)


def question_key(task: Task) -> str:
    """A key of the fields of a task that an agent sees."""
    return key_of(task.model_dump(mode="json", include={"question", "prompt", "initial_passages"}))


def sampling_of(method: Method, mode: SamplingName) -> Sampling | None:
    """The sampling of a method's policy; None if the method calls no policy."""
    return GREEDY if mode == "greedy" and method.sampling else method.sampling
