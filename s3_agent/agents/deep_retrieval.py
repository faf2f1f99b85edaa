"""DeepRetrieval (arXiv 2503.00223): the policy rewrites the question once, and the rewritten query is searched for.

The checkpoints were trained on a raw text with chat markers written by hand. `instruct` continues that text, as in
training. `double_template` sends it as a chat message, so that a second template is put around it, as in the s3
evaluation (docs/originals.md#e2). The wording is ours; markers, tags, JSON key and the open `<think>` are the
original's.
"""

import json
from typing import Literal

from s3_agent.agents.base import Limits, search
from s3_agent.agents.methods import PROMPTED_LIMITS, Method, Sampling
from s3_agent.agents.prompted import Calls
from s3_agent.clients.policy import Policy
from s3_agent.clients.retriever import Retriever
from s3_agent.guard import neutral
from s3_agent.questions import normalize_question
from s3_agent.selection import SelectionRule, select_passages
from s3_agent.tags import bodies
from s3_agent.types import Action, ActionKind, Episode, StopReason, Task, Turn, whole_text

PromptName = Literal["instruct", "double_template"]

LIMITS = Limits(
    initial_topk=0,
    topk=3,
    max_searches=1,
    final_generation=False,
    max_new_tokens=512,
    max_observation_tokens=None,
    max_context_tokens=2048,
)
_BEFORE = """\
<|im_start|>system
You are a helpful assistant. You reason in your mind first and then give the user the answer.<|im_end|>
<|im_start|>user
You are an expert in rewriting queries. Write the query terms that find relevant literature for the user's query in a \
Wikipedia corpus with BM25.
Show your work between <think> and </think>. Your final response must be JSON between <answer> and </answer>, for \
example
<think>
[thinking process]
</think>
<answer>
{
    "query": "...."
}
</answer>.
Note: the query should use Boolean operators (AND, OR), and parentheses that group its terms.

Here is the user query:
"""
_AFTER = """
Assistant: Let me rewrite the query.
<think>
"""


def parse(response: str) -> Action:
    """The `query` of the JSON in the last `<answer>`; a missing tag is added before or after the whole response."""
    opened = response if "<answer>" in response else f"<answer>{response}"
    closed = opened if "</answer>" in opened else f"{opened}</answer>"
    *_, last = "", *bodies(closed, "answer")
    try:
        value = json.loads(last)
    except (ValueError, RecursionError):
        value = None
    query = value.get("query") if isinstance(value, dict) else None
    if not isinstance(query, str) or not query.strip():
        return Action(kind=ActionKind.INVALID)
    return Action(kind=ActionKind.SEARCH, query=whole_text(query))


class DeepRetrievalAgent:
    """One rewritten query. A response that can not be parsed is not searched for, and the question gets no answer."""

    def __init__(
        self, *, limits: Limits = LIMITS, prompt: PromptName = "instruct", selection: SelectionRule = "every"
    ) -> None:
        self._limits = limits
        self._raw = prompt == "instruct"
        self._selection: SelectionRule = selection

    async def run(self, task: Task, *, policy: Policy, retriever: Retriever) -> Episode:
        """Rewrite and search. Raises PolicyError, RetrieverError, and ConfigError for a prompt that does not fit."""
        calls = Calls(policy, self._limits, window=await policy.window(), template=not self._raw)
        prompt = _BEFORE + neutral(normalize_question(task.question), policy.control) + _AFTER
        reply = await calls.first(task, prompt)
        read, written = calls.taken()
        action, found = parse(reply), None
        if action.kind is ActionKind.SEARCH:
            found = await search(retriever, action.query or "", task.question, topk=self._limits.topk)
        turn = Turn(response=reply, action=action, passages=found, prompt_tokens=read, response_tokens=written)
        return Episode(
            agent="deep_retrieval",
            prompt=prompt,
            initial_passages=(),
            turns=(turn,),
            selected=select_passages((), (turn,), rule=self._selection),
            stop_reason=StopReason.INVALID if found is None else StopReason.SEARCHES_USED,
        )


METHOD = Method(
    summary="rewrites the question once and searches for that",
    source="arXiv 2503.00223",
    make=DeepRetrievalAgent,
    limits=LIMITS,
    policy="rewriter",
    sampling=Sampling(temperature=0.7),
    prompts=("instruct", "double_template"),
    uses=PROMPTED_LIMITS - {"max_searches"},
)
