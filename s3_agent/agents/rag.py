"""Methods that ask no policy: naive RAG and the closed-book answers, direct and step by step.

They only choose what the generator reads. How the generator is asked is part of the method too (`agents.methods`).
"""

from functools import partial

from s3_agent.agents.base import Limits, first_passages
from s3_agent.agents.methods import Method
from s3_agent.clients.policy import Policy
from s3_agent.clients.prompts import AnswerPrompt
from s3_agent.clients.retriever import Retriever
from s3_agent.selection import SelectionRule, select_passages
from s3_agent.types import Episode, StopReason, Task

LIMITS = Limits(initial_topk=0, topk=3, max_searches=0, final_generation=False)
CLOSED_BOOK_LIMITS = Limits(initial_topk=0, max_searches=0, final_generation=False)


class RagAgent:
    """The `limits.topk` best passages for the question, by the index that the retriever serves."""

    def __init__(self, *, limits: Limits = LIMITS, selection: SelectionRule = "every") -> None:
        self._limits = limits
        self._selection: SelectionRule = selection

    async def run(self, task: Task, *, policy: Policy, retriever: Retriever) -> Episode:
        """Retrieve once. Raises RetrieverError."""
        passages = await first_passages(task, retriever, topk=self._limits.topk)
        return Episode(
            agent="rag",
            prompt="",
            initial_passages=passages,
            turns=(),
            selected=select_passages(passages, (), rule=self._selection),
            stop_reason=StopReason.SEARCHES_USED,
        )


class ClosedBookAgent:
    """Nothing is retrieved: the generator answers from its own knowledge. `name` is `direct` or `cot`."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def run(self, task: Task, *, policy: Policy, retriever: Retriever) -> Episode:
        """An episode without passages."""
        return Episode(
            agent=self._name,
            prompt="",
            initial_passages=(),
            turns=(),
            selected=(),
            stop_reason=StopReason.SEARCHES_USED,
        )


METHOD = Method(
    summary="one search for the question itself",
    source="naive RAG",
    make=RagAgent,
    limits=LIMITS,
    policy="none",
    sampling=None,
    uses=frozenset({"topk"}),
)
COT = Method(
    summary="no search; the generator answers step by step",
    source="arXiv 2201.11903",
    make=partial(ClosedBookAgent, "cot"),
    limits=CLOSED_BOOK_LIMITS,
    policy="none",
    sampling=None,
    answer_prompt=AnswerPrompt(style="cot"),
    uses=frozenset(),
)
DIRECT = Method(
    summary="no search; the generator answers directly",
    source="zero-shot",
    make=partial(ClosedBookAgent, "direct"),
    limits=CLOSED_BOOK_LIMITS,
    policy="none",
    sampling=None,
    answer_prompt=AnswerPrompt(style="zero_shot"),
    uses=frozenset(),
)
