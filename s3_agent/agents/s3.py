"""s3: search, then select (arXiv 2505.14146). The policy searches and marks; a frozen generator answers.

The prompt's wording is ours; every literal that a trained checkpoint depends on is kept: tags, JSON key, document
lines, the question and information blocks at the end, the hint after an invalid response (docs/protocol.md#s3).
"""

from collections.abc import Sequence
from typing import Literal

from s3_agent.agents.base import Limits, SearchAgent
from s3_agent.agents.methods import Method, Sampling
from s3_agent.clients.policy import Role
from s3_agent.clients.prompts import AnswerPrompt
from s3_agent.errors import ConfigError
from s3_agent.guard import neutral, without_control
from s3_agent.questions import normalize_question
from s3_agent.selection import SelectionRule
from s3_agent.tags import INVALID_HINT, QUERY_END, initial_block, observation, parse, read_initial_block
from s3_agent.types import Action, Passage, Task

PromptName = Literal["instruct", "bm25", "compact", "data"]
"""`instruct` explains the protocol, `bm25` asks for Boolean queries as well, `compact` is the question and information
blocks, for policies that were trained on the protocol itself, `data` takes the instructions from the task's `prompt`.
"""

LIMITS = Limits()
MARKER = "Now, start the loop with the following question and initial searched results:"

_INSTRUCTIONS = """\
You are a search copilot for a separate generation model. You get a user's question and the results of a first search. \
Judge first whether these results are enough to answer the question.

If they are, write <search_complete>True</search_complete>: the generator then has what it needs.

If they are not, go through the cycle <query> -> <information> -> <important_info> -> <search_complete> -> <query> ... \
and help the generator to a better answer with more relevant information.

Write a query between <query> and </query> in JSON format. Its results come back between <information> and \
</information>. Put the ids of the important documents, up to 3 and only of the current information window, between \
<important_info> and </important_info>, for example <important_info>[1, 4]</important_info>. When the search is not \
complete, a <search_complete> tag and a new query MUST follow.

After reading results decide: go on with <search_complete>False</search_complete> and a better query, or stop with \
<search_complete>True</search_complete>. You may reason between <think> and </think> at any time; the generator uses \
only the important information.
{note}
The input looks like this:
<question>
[the question]
</question>
<information>
[the first results]
</information>

Output when the information is sufficient:
<search_complete>
True
</search_complete>

Output when it is not:
<query>
{{
    "query": "[search query]"
}}
</query>
<information>
[results]
</information>
<important_info>
[document ids]
</important_info>
<search_complete>
False
</search_complete>
<query>
{{
    "query": "[search query]"
}}
</query>
... (several turns, until the search is complete)
<search_complete>
True
</search_complete>

"""
_BM25_NOTE = """
Write the query with Boolean operators (AND, OR) and parentheses that group its terms.
"""
_NOTES = {"instruct": "", "bm25": _BM25_NOTE}


def compact_prompt(question: str, passages: Sequence[Passage], control: frozenset[str] = frozenset()) -> str:
    """The question and information blocks, with which every s3 prompt ends."""
    return f"<question>\n{neutral(question, control)}\n</question>\n{initial_block(passages, control)}"


class S3Protocol:
    """s3's tags as a text protocol for the turn loop."""

    stop: tuple[str, ...] = (QUERY_END,)
    invalid_hint: str | None = INVALID_HINT
    observation_role: Role = "assistant"

    def __init__(self, prompt: PromptName = "instruct") -> None:
        self._prompt: PromptName = prompt

    def message(self, task: Task, passages: Sequence[Passage], control: frozenset[str] = frozenset()) -> str:
        return self._instructions(task, control) + compact_prompt(normalize_question(task.question), passages, control)

    def _instructions(self, task: Task, control: frozenset[str]) -> str:
        if self._prompt == "compact":
            return ""
        if self._prompt != "data":
            return f"{_INSTRUCTIONS.format(note=_NOTES[self._prompt])}{MARKER}\n\n"
        words, marker, _ = (task.prompt or "").partition(MARKER)
        if not marker:
            raise ConfigError(
                f"agent.prompt is `data`, but the prompt of task {task.id} does not hold the line {MARKER!r}",
                remedy="use rows with s3's `prompt` column, or agent.prompt=instruct",
            )
        return f"{without_control(words, control)}{marker}\n\n"

    def passages_in_data(self, task: Task) -> tuple[Passage, ...] | None:
        if self._prompt != "data" or task.prompt is None:
            return None
        return read_initial_block(task.prompt.partition(MARKER)[2]) or None

    def parse(self, response: str) -> Action:
        return parse(response)

    def observation(self, passages: Sequence[Passage], control: frozenset[str] = frozenset()) -> str:
        return observation(passages, control)


class S3Agent(SearchAgent):
    """The s3 searcher: one assistant turn, continued with observations; selected passages are fields of the episode."""

    def __init__(
        self,
        *,
        limits: Limits = LIMITS,
        prompt: PromptName = "instruct",
        selection: SelectionRule = "marked-first",
    ) -> None:
        super().__init__("s3", S3Protocol(prompt), limits=limits, selection=selection)


METHOD = Method(
    summary="searches and marks passages; a generator answers from them",
    source="arXiv 2505.14146",
    make=S3Agent,
    limits=LIMITS,
    policy="protocol",
    sampling=Sampling(temperature=0.6, top_p=0.95),
    selection="marked-first",
    prompts=("instruct", "bm25", "compact", "data"),
    answer_prompt=AnswerPrompt(),
    protocol=S3Protocol,
    tags=("question", "information", "query", "important_info", "search_complete", "think"),
    entry="s3_agent.agl.entry:S3Agent",
)
