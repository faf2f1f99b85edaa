"""Search-o1 as the s3 evaluation ran it (arXiv 2501.05366): a reasoning model that searches while it thinks.

A second call, Reason-in-Documents, reads the documents that are found, and only its reply is added to the reasoning.
The generator gets the raw documents (docs/originals.md#e3). The wording is ours; markers and headings are the
original's.
"""

from collections.abc import Sequence

from s3_agent.agents.base import Limits
from s3_agent.agents.methods import PROMPTED_LIMITS, Method, Sampling
from s3_agent.agents.prompted import Ask, PromptedAgent
from s3_agent.clients.prompts import AnswerPrompt
from s3_agent.guard import neutral, without_control
from s3_agent.questions import normalize_question
from s3_agent.tags import documents
from s3_agent.types import Action, ActionKind, Passage, Task, Turn

LIMITS = Limits(
    initial_topk=0,
    topk=3,
    max_searches=4,
    final_generation=False,
    max_new_tokens=2048,
    max_observation_tokens=None,
    max_context_tokens=32768,
)
BEGIN_QUERY, END_QUERY = "<|begin_search_query|>", "<|end_search_query|>"
BEGIN_RESULT, END_RESULT = "<|begin_search_result|>", "<|end_search_result|>"
MARKERS = (BEGIN_QUERY, END_QUERY, BEGIN_RESULT, END_RESULT)
HEADING = "**Final Information**"

_INSTRUCTIONS = f"""\
You are a reasoning assistant that can search the web in order to answer the question accurately.

To search, write {BEGIN_QUERY} your query {END_QUERY}. The pages that are found are analysed for you, and what helps \
comes back as {BEGIN_RESULT} search results {END_RESULT}. You may search again whenever you need to, at most {{limit}} \
times.

Example:
Question: "In which country was the architect of the tallest church of Norway born?"
Assistant thinks:
- First I need to know which church is the tallest of Norway.
Assistant:
{BEGIN_QUERY}tallest church in Norway{END_QUERY}
(The analysed pages come back.)
Assistant goes on with what it learned:
- Now I need to know where its architect was born.
Assistant:
{BEGIN_QUERY}birthplace of the architect{END_QUERY}
(The analysed pages come back, and the assistant answers.)

Remember:
- Ask for what you need to know between {BEGIN_QUERY} and {END_QUERY}.
- When you need nothing more, go on with your reasoning and answer.

"""
_READ = """\
Read the web pages that were found for the current search query, in the light of the previous steps of reasoning, and \
take from them what helps.

1. Analyse each page and find what is relevant to the current search query.
2. Extract the facts that bring the previous reasoning forward; they must be right and to the point.
3. Write them under this heading:

{heading}

[what helps; or, when nothing does: No helpful information found.]

Previous steps of reasoning:
{reasoning}

Current search query:
{query}

Web pages:
{documents}

Now analyse each page for the query "{query}" and write what helps under {heading}."""


def parse(reply: str) -> Action:
    """A search for the first pair of query markers, else the end."""
    start = reply.find(BEGIN_QUERY)
    end = reply.find(END_QUERY, start)
    if start < 0 or end < 0:
        return Action(kind=ActionKind.FINISH)
    return Action(kind=ActionKind.SEARCH, query=reply[start + len(BEGIN_QUERY) : end].strip())


def _grown(turns: Sequence[Turn], control: frozenset[str]) -> str:
    text = "".join(turn.response + turn.observation for turn in turns)
    return without_control(text, control, keep=MARKERS)


class SearchO1Agent(PromptedAgent):
    """One text, to which replies and the notes on documents are added, sent as a user message each turn."""

    name = "search_o1"

    def message(self, task: Task, initial: Sequence[Passage], turns: Sequence[Turn], control: frozenset[str]) -> str:
        question = neutral(normalize_question(task.question), control)
        instructions = _INSTRUCTIONS.format(limit=self._limits.max_searches)
        return f"{instructions}Question: {question}\n\nAssistant:\n{_grown(turns, control)}"

    def parse(self, reply: str) -> Action:
        return parse(reply)

    async def read(self, turns: Sequence[Turn], found: Turn, control: frozenset[str], ask: Ask) -> str | None:
        assert found.action is not None
        distilled = await ask(
            _READ.format(
                heading=HEADING,
                reasoning=_grown([*turns, found], control),
                query=neutral(found.action.query or "", control),
                documents=documents(found.passages or (), control),
            )
        )
        return None if distilled is None else f"\n\n{BEGIN_RESULT}{distilled}{END_RESULT}\n\n"


METHOD = Method(
    summary="searches while it reasons; a second call reads the documents",
    source="arXiv 2501.05366, as s3 evaluated it",
    make=SearchO1Agent,
    limits=LIMITS,
    policy="instruct",
    sampling=Sampling(temperature=0.7, top_p=0.95),
    answer_prompt=AnswerPrompt(layout="lines", empty="No context"),
    uses=PROMPTED_LIMITS,
)
