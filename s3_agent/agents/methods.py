"""What each agent is: one row a method, with the defaults of its own paper or code (docs/agents.md).

Everything that differs by the agent's name is looked up here: limits, sampling, which policy plays it, who can answer,
how the generator is asked, whether it can be trained.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from s3_agent.agents import deep_retrieval, ircot, rag, s3, search_o1, search_r1
from s3_agent.agents.base import Agent, Limits
from s3_agent.agents.deep_retrieval import DeepRetrievalAgent
from s3_agent.agents.ircot import IrcotAgent
from s3_agent.agents.rag import ClosedBookAgent, RagAgent
from s3_agent.agents.s3 import S3Agent
from s3_agent.agents.search_o1 import SearchO1Agent
from s3_agent.agents.search_r1 import SearchR1Agent
from s3_agent.clients.prompts import AnswerPrompt
from s3_agent.selection import SelectionRule

AgentName = Literal[
    "s3",
    "search_r1",
    "search_r1_agl_chat",
    "rag",
    "deep_retrieval",
    "ircot",
    "search_o1",
    "cot",
    "direct",
]
Answers = Literal["generator", "policy"]
"""Who answers: the frozen generator from what was selected ("Ret"), or the policy by itself ("self")."""
PolicyKind = Literal["protocol", "rewriter", "instruct", "none"]
"""`protocol`: a model trained on the method's own protocol; `rewriter`: DeepRetrieval's; `instruct`: any model that
follows instructions. Without a model of its own, a rewriter and an instruct method are played by the generator's."""

_ALL = frozenset(Limits.model_fields)
_PROMPTED = frozenset({"topk", "max_searches", "max_new_tokens", "max_context_tokens"})


class Sampling(BaseModel):
    """How a policy is sampled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)


@dataclass(frozen=True, slots=True)
class Method:
    """One agent. `answers` begins with the method's own; `uses` are the limits that it reads; `sampling` is what the
    published numbers were made with, None where no policy is sampled."""

    summary: str
    source: str
    make: Callable[..., Agent]
    limits: Limits
    policy: PolicyKind
    sampling: Sampling | None
    answers: tuple[Answers, ...] = ("generator",)
    selection: SelectionRule = "every"
    prompts: tuple[str, ...] = ("instruct",)
    answer_prompt: AnswerPrompt = field(default_factory=lambda: AnswerPrompt(layout="lines"))
    uses: frozenset[str] = _ALL

    @property
    def trainable(self) -> bool:
        """Whether a rollout is one row of sampled tokens, which only grow: what our trainer learns from."""
        return self.policy == "protocol"


_SEARCH_R1 = partial(
    Method,
    policy="protocol",
    sampling=Sampling(temperature=1.0, top_p=0.95),
    answers=("policy", "generator"),
    selection="chronological",
    prompts=("instruct", "compact", "data"),
    answer_prompt=AnswerPrompt(),
    uses=_ALL - {"initial_topk"},
)

METHODS: dict[AgentName, Method] = {
    "s3": Method(
        summary="searches and marks passages; a generator answers from them",
        source="arXiv 2505.14146",
        make=S3Agent,
        limits=s3.LIMITS,
        policy="protocol",
        sampling=Sampling(temperature=0.6, top_p=0.95),
        selection="marked-first",
        prompts=("instruct", "bm25", "compact", "data"),
        answer_prompt=AnswerPrompt(),
    ),
    "search_r1": _SEARCH_R1(
        summary="reasons, searches and answers by itself",
        source="arXiv 2503.09516",
        make=SearchR1Agent,
        limits=search_r1.LIMITS,
    ),
    "search_r1_agl_chat": _SEARCH_R1(
        summary="Search-R1 as Agent Lightning's example runs it over chat messages",
        source="Agent Lightning 1.0",
        make=partial(SearchR1Agent, agl_chat=True),
        limits=search_r1.AGL_CHAT_LIMITS,
    ),
    "rag": Method(
        summary="one search for the question itself",
        source="naive RAG",
        make=RagAgent,
        limits=rag.LIMITS,
        policy="none",
        sampling=None,
        uses=frozenset({"topk"}),
    ),
    "deep_retrieval": Method(
        summary="rewrites the question once and searches for that",
        source="arXiv 2503.00223",
        make=DeepRetrievalAgent,
        limits=deep_retrieval.LIMITS,
        policy="rewriter",
        sampling=Sampling(temperature=0.7),
        prompts=("instruct", "double_template"),
        uses=_PROMPTED - {"max_searches"},
    ),
    "ircot": Method(
        summary="searches for each step of its reasoning",
        source="arXiv 2212.10509, as s3 evaluated it",
        make=IrcotAgent,
        limits=ircot.LIMITS,
        policy="instruct",
        sampling=Sampling(temperature=0.7, top_p=0.95),
        answers=("generator", "policy"),
        uses=_PROMPTED | {"initial_topk"},
    ),
    "search_o1": Method(
        summary="searches while it reasons; a second call reads the documents",
        source="arXiv 2501.05366, as s3 evaluated it",
        make=SearchO1Agent,
        limits=search_o1.LIMITS,
        policy="instruct",
        sampling=Sampling(temperature=0.7, top_p=0.95),
        answer_prompt=AnswerPrompt(layout="lines", empty="No context"),
        uses=_PROMPTED,
    ),
    "cot": Method(
        summary="no search; the generator answers step by step",
        source="arXiv 2201.11903",
        make=partial(ClosedBookAgent, "cot"),
        limits=rag.CLOSED_BOOK_LIMITS,
        policy="none",
        sampling=None,
        answer_prompt=AnswerPrompt(style="cot"),
        uses=frozenset(),
    ),
    "direct": Method(
        summary="no search; the generator answers directly",
        source="zero-shot",
        make=partial(ClosedBookAgent, "direct"),
        limits=rag.CLOSED_BOOK_LIMITS,
        policy="none",
        sampling=None,
        answer_prompt=AnswerPrompt(style="zero_shot"),
        uses=frozenset(),
    ),
}


def named(text: str) -> AgentName | None:
    """The agent of that name, if there is one."""
    return next((name for name in METHODS if name == text), None)
