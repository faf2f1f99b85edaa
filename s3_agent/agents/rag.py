"""Methods that ask no policy: naive RAG, the bare retriever, and the closed-book answers, direct and step by step.

They only choose what the generator reads; nobody reads what the bare retriever finds. How the generator is asked is
part of the method too (`agents.methods`).
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
RETRIEVER_LIMITS = Limits(initial_topk=0, topk=100, max_searches=0, final_generation=False)
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


class RetrieverAgent:
    """The index by itself: the `limits.topk` best passages for the question as it is, which nobody reads.

    The index is always asked, also where the task brings passages: another index may have found those.
    """

    def __init__(self, *, limits: Limits = RETRIEVER_LIMITS, selection: SelectionRule = "every") -> None:
        self._limits = limits
        self._selection: SelectionRule = selection

    async def run(self, task: Task, *, policy: Policy, retriever: Retriever) -> Episode:
        """Retrieve once. Raises RetrieverError."""
        passages = await retriever.retrieve(task.question, topk=self._limits.topk)
        return Episode(
            agent="retriever",
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
RETRIEVER = Method(
    summary="the index by itself: nobody answers, only what it finds is measured",
    source="TREC's ad-hoc retrieval",
    make=RetrieverAgent,
    limits=RETRIEVER_LIMITS,
    policy="none",
    sampling=None,
    answers=("nobody",),
    uses=frozenset({"topk"}),
    variant=True,
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
