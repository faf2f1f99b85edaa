"""s3: search, then select (arXiv 2505.14146; spec §1). The policy searches and marks; a frozen generator answers.

The prompt's wording is ours; every literal that a trained checkpoint depends on (spec §1.7) is kept: tags, JSON key,
document lines, the question and information blocks at the end, the hint after an invalid response.
"""

from collections.abc import Sequence
from typing import Literal

from s3_agent.agents.base import Limits, normalize_question, play
from s3_agent.clients.policy import Policy
from s3_agent.clients.retriever import Retriever
from s3_agent.selection import SelectionRule, select_passages
from s3_agent.tags import INVALID_HINT, QUERY_END, initial_block, neutral, observation, parse
from s3_agent.types import Action, Episode, Passage, Task

PromptName = Literal["instruct", "compact"]

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
{
    "query": "[search query]"
}
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
{
    "query": "[search query]"
}
</query>
... (several turns, until the search is complete)
<search_complete>
True
</search_complete>

Now, start the loop with the following question and initial searched results:

"""


def compact_prompt(question: str, passages: Sequence[Passage]) -> str:
    """The question and information blocks alone, for policies that were trained on the protocol itself."""
    return f"<question>\n{neutral(question)}\n</question>\n{initial_block(passages)}"


class S3Protocol:
    """s3's tags as a text protocol for the turn loop."""

    stop: tuple[str, ...] = (QUERY_END,)
    invalid_hint: str = INVALID_HINT

    def __init__(self, prompt: PromptName = "instruct") -> None:
        self._instructions = _INSTRUCTIONS if prompt == "instruct" else ""

    def prompt(self, question: str, passages: Sequence[Passage]) -> str:
        return self._instructions + compact_prompt(question, passages)

    def parse(self, response: str) -> Action:
        return parse(response)

    def observation(self, passages: Sequence[Passage]) -> str:
        return observation(passages)


class S3Agent:
    """The s3 searcher: one assistant turn, continued with observations; selected passages are fields of the episode."""

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        prompt: PromptName = "instruct",
        selection: SelectionRule = "marked-first",
    ) -> None:
        self._limits = limits or Limits()
        self._protocol = S3Protocol(prompt)
        self._selection: SelectionRule = selection

    async def run(self, task: Task, *, policy: Policy, retriever: Retriever) -> Episode:
        """Search and select for `task`. Raises PolicyError and RetrieverError; a malformed response is an episode."""
        initial = task.initial_passages
        if initial is None:
            initial = await retriever.retrieve(normalize_question(task.question), topk=self._limits.initial_topk)
        prompt, turns, stop_reason = await play(
            task, initial, self._protocol, self._limits, policy=policy, retriever=retriever
        )
        return Episode(
            agent="s3",
            prompt=prompt,
            initial_passages=tuple(initial),
            turns=tuple(turns),
            selected=select_passages(initial, turns, rule=self._selection),
            stop_reason=stop_reason,
        )
