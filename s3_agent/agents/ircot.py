"""IRCoT as the s3 evaluation simplified it (arXiv 2212.10509): each step of reasoning is the next query.

The prompt's wording is ours; its sections, their order and the `<search_complete>` tag are the original's. The whole
reply without that tag is the query, and a document that is found twice is shown twice (docs/originals.md#e3).
"""

import re
from collections.abc import Sequence

from s3_agent.agents.base import Limits
from s3_agent.agents.methods import PROMPTED_LIMITS, Method, Sampling
from s3_agent.agents.prompted import PromptedAgent
from s3_agent.guard import neutral, without_control
from s3_agent.questions import normalize_question
from s3_agent.tags import documents
from s3_agent.types import Action, ActionKind, Passage, Task, Turn

LIMITS = Limits(
    topk=3,
    max_searches=4,
    final_generation=False,
    max_new_tokens=2048,
    max_observation_tokens=None,
    max_context_tokens=32768,
)
MOST_QUERY_CHARACTERS = 8000
"""The limit of our retrieval server; an E5 encoder reads only the first 256 tokens in any case."""

_COMPLETE = re.compile(r"<search_complete>\s*yes\s*</search_complete>", re.IGNORECASE)
_TAG = re.compile(r"<search_complete>[^<]*</search_complete>", re.IGNORECASE)
_INSTRUCTIONS = """\
Reason step by step about the question on the basis of the context above, and write the next step of your reasoning. \
Give the final answer only if you are confident of it. End your reply with <search_complete>Yes</search_complete> when \
nothing more has to be looked up, else with <search_complete>No</search_complete>."""


def without_tag(reply: str) -> str:
    """Only the reasoning of a reply."""
    while (rest := _TAG.sub("", reply)) != reply:  # the text around a removed tag may form a tag itself
        reply = rest
    return reply.strip()


def parse(reply: str) -> Action:
    """The end when the reply says Yes, else a search for all of its reasoning."""
    if _COMPLETE.search(reply):
        return Action(kind=ActionKind.FINISH)
    return Action(kind=ActionKind.SEARCH, query=without_tag(reply)[:MOST_QUERY_CHARACTERS])


class IrcotAgent(PromptedAgent):
    """Alternates steps of reasoning and searches. Its own answer is the reasoning of its last reply."""

    name = "ircot"

    def message(self, task: Task, initial: Sequence[Passage], turns: Sequence[Turn], control: frozenset[str]) -> str:
        found = [initial, *(turn.passages or () for turn in turns)]
        context = "\n".join(documents(passages, control) for passages in found if passages)
        thoughts = [without_control(without_tag(turn.response), control) for turn in turns]
        steps = "".join(f"{number}. {thought}\n" for number, thought in enumerate(thoughts, 1))
        return (
            f"Question: {neutral(normalize_question(task.question), control)}\n\n"
            f"Context:\n{context}\n\n"
            f"Earlier steps of reasoning:\n{steps or 'None yet.'}\n"
            f"{_INSTRUCTIONS}"
        )

    def parse(self, reply: str) -> Action:
        return parse(reply)

    def answer(self, turns: Sequence[Turn]) -> str | None:
        return without_tag(turns[-1].response) if turns else None


METHOD = Method(
    summary="searches for each step of its reasoning",
    source="arXiv 2212.10509, as s3 evaluated it",
    make=IrcotAgent,
    limits=LIMITS,
    policy="instruct",
    sampling=Sampling(temperature=0.7, top_p=0.95),
    answers=("generator", "policy"),
    uses=PROMPTED_LIMITS | {"initial_topk"},
)
