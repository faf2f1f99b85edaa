"""What a method is: everything that differs between agents, in one object. Every method is registered here.

The doctor, recipes, the runner and the workers read from the `Method` its limits, sampling, protocol and tags, who
answers, its own rewards, which policy plays it and whether it can be trained. Only a method's own module names it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from retrieval_server.registry import Registry
from s3_agent.agents.base import Agent, Limits, TextProtocol
from s3_agent.clients.prompts import AnswerPrompt
from s3_agent.errors import ConfigError
from s3_agent.guard import protect
from s3_agent.selection import SelectionRule
from s3_agent.types import Episode

Answers = Literal["generator", "policy", "nobody"]
"""Who answers: the frozen generator from what was selected ("Ret"), the policy itself ("self"), or nobody: then only
what was found is measured.
"""
PolicyKind = Literal["protocol", "rewriter", "instruct", "none"]
"""`protocol`: a model trained on the method's own protocol; `rewriter`: DeepRetrieval's; `instruct`: any model that
follows instructions. If no other model is given, the generator's model plays a rewriter and an instruct method.
"""

ALL_LIMITS = frozenset(Limits.model_fields)
PROMPTED_LIMITS = frozenset({"topk", "max_searches", "max_new_tokens", "max_context_tokens"})


class Sampling(BaseModel):
    """How a policy is sampled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)


def given_answer(episode: Episode) -> str | None:
    """The policy's answer in the episode."""
    return episode.answer


@dataclass(frozen=True, slots=True)
class Method:
    """One method. The defaults are for a method without a protocol whose answers the generator gives.

    `make` takes `limits` and `selection` as keywords (nothing where `uses` is empty), and `prompt` where there are
    several `prompts`. A searcher with a protocol of its own:

        METHOD = Method(
            summary="asks one question after another",
            source="arXiv 0000.00000",
            make=lambda **given: SearchAgent("asker", AskerProtocol(), **given),
            limits=Limits(topk=3, max_searches=2),
            policy="protocol",
            sampling=Sampling(temperature=1.0),
            protocol=lambda prompt: AskerProtocol(),
            tags=("ask", "information"),
        )
    """

    summary: str
    source: str
    make: Callable[..., Agent]
    limits: Limits
    policy: PolicyKind
    sampling: Sampling | None
    """The sampling of the published numbers; None if no policy is sampled."""
    answers: tuple[Answers, ...] = ("generator",)
    """Who can answer; the default first."""
    selection: SelectionRule = "every"
    prompts: tuple[str, ...] = ("instruct",)
    answer_prompt: AnswerPrompt = field(default_factory=lambda: AnswerPrompt(layout="lines"))
    uses: frozenset[str] = ALL_LIMITS
    """The limits that it reads."""
    protocol: Callable[[Any], TextProtocol] | None = None
    """Its text protocol, made with the name of a prompt; None if it writes a whole prompt for each call."""
    tags: tuple[str, ...] = ()
    """The names of the tags that the protocol writes and reads. Text from outside can not imitate them."""
    own_rewards: tuple[str, ...] = ()
    """Rewards that score only what its policy wrote; the default one first."""
    own_answer: Callable[[Episode], str | None] = given_answer
    """How to read the policy's own answer, for rows of results that score it."""
    entry: str | None = None
    """The class that plays it under Agent Lightning's own controllers; None: the one that reads the agent's name."""
    variant: bool = False
    """Whether it is a variant of another method; an evaluation plays a variant only when it is named."""

    def __post_init__(self) -> None:
        protect(self.tags)

    @property
    def trainable(self) -> bool:
        """Whether a rollout is one row of tokens that only grows, as our trainer needs."""
        return self.policy == "protocol"


_HERE = "s3_agent.agents"
METHODS: Registry[Method] = Registry(
    "agent",
    group="s3_agent.agents",
    own={
        "s3": f"{_HERE}.s3:METHOD",
        "search_r1": f"{_HERE}.search_r1:METHOD",
        "search_r1_agl_chat": f"{_HERE}.search_r1:AGL_CHAT",
        "rag": f"{_HERE}.rag:METHOD",
        "retriever": f"{_HERE}.rag:RETRIEVER",
        "deep_retrieval": f"{_HERE}.deep_retrieval:METHOD",
        "ircot": f"{_HERE}.ircot:METHOD",
        "search_o1": f"{_HERE}.search_o1:METHOD",
        "cot": f"{_HERE}.rag:COT",
        "direct": f"{_HERE}.rag:DIRECT",
    },
    kind=Method,
    error=ConfigError,
)
