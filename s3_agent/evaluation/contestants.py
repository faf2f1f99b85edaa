"""What is evaluated: an agent under a label, with its policy, its sampling, and the source of its answer."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from s3_agent.agents.methods import Method, Sampling
from s3_agent.clients.tokenizer import ChatTemplate
from s3_agent.errors import ConfigError
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
    "s3_agent.clients.retriever",
    "s3_agent.clients.tokenizer",
    "s3_agent.guard",
    "s3_agent.questions",
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
    """An agent that plays each question once. `policy` is None for a method that calls no policy.

    Several samples of a question are several contestants with the same label, which are one row of the result table;
    each has its own `sample` number and seed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    settings: AgentSettings
    sampling: Sampling | None = None
    policy: PolicyUnderTest | None = None
    sample: int = 0

    @property
    def id(self) -> str:
        """The label, with the number of the sample unless it is the first."""
        return f"{self.label}#{self.sample}" if self.sample else self.label

    @property
    def samples_differ(self) -> bool:
        """Whether another seed gives another episode: not if no policy is asked, or without a temperature."""
        given = (self.policy.request if self.policy else {}).get("temperature")
        temperature = self.sampling.temperature if self.sampling and given is None else given
        return self.policy is not None and bool(temperature)

    def seed(self, seed: int) -> int:
        """The seed of this sample; the first has the evaluation's own, so that an evaluation can grow by samples."""
        if not self.sample:
            return seed
        return int.from_bytes(hashlib.sha256(f"{seed}/{self.sample}".encode()).digest()[:4], "big") >> 1

    @property
    def name(self) -> str:
        """The agent's name: the label without the source of answers."""
        return self.label.partition(":")[0]

    def key(self, *, index: dict[str, Any], seed: int) -> str:
        """A key of everything that its episodes depend on, except the question. Scoring settings are not in it."""
        agent = self.settings.model_dump(mode="json", exclude={"reward", "answers", "layout"})
        policy = self.policy and self.policy.model_dump(mode="json", include=set(_SHOWN))
        sampling = self.sampling and self.sampling.model_dump()
        return key_of("episode", agent, policy, sampling, index, self.seed(seed), code_of(*_EPISODE_CODE))

    @property
    def asks_generator_model(self) -> bool:
        """Whether it needs the generator's server, for answers or as the policy."""
        return self.settings.asks_generator or (self.policy is not None and self.policy.at_generator)


def with_samples(contestants: Sequence[Contestant], samples: int) -> list[Contestant]:
    """Each contestant `samples` times, the ones whose samples would all be equal once. Raises ConfigError if that are
    the sampled ones, or all.
    """
    if samples == 1:
        return [*contestants]
    if greedy := [one.label for one in contestants if one.policy is not None and not one.samples_differ]:
        raise ConfigError(
            f"{samples} samples of {', '.join(greedy)} would be equal: the policy is asked at temperature 0",
            remedy="leave out --samples, or sample (--sampling published, and no temperature of 0 in policy.request)",
        )
    if not any(one.samples_differ for one in contestants):
        raise ConfigError(
            f"{samples} samples would be equal: none of {', '.join(one.label for one in contestants)} asks a policy",
            remedy="leave out --samples",
        )
    return [one.model_copy(update={"sample": number}) for one in contestants for number in _numbers(one, samples)]


def _numbers(one: Contestant, samples: int) -> Iterable[int]:
    return range(samples if one.samples_differ else 1)


def question_key(task: Task) -> str:
    """A key of the fields of a task that an agent sees."""
    return key_of(task.model_dump(mode="json", include={"question", "prompt", "initial_passages"}))


def sampling_of(method: Method, mode: SamplingName) -> Sampling | None:
    """The sampling of a method's policy; None if the method calls no policy."""
    return GREEDY if mode == "greedy" and method.sampling else method.sampling
