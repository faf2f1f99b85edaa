"""Search-R1 (arXiv 2503.09516): the policy itself reasons, searches and answers.

The prompt's wording is ours; tags, document lines, the text after an invalid action and the end of the prompt are the
original's. `agl_chat` is the variant in Agent Lightning's example: observations are user messages of any length, and an
invalid action ends the episode, so its numbers can not be compared with Search-R1's (docs/originals.md#e7).
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

from s3_agent.agents.base import Limits, SearchAgent
from s3_agent.agents.methods import ALL_LIMITS, Method, Sampling
from s3_agent.clients.policy import Role
from s3_agent.clients.prompts import AnswerPrompt
from s3_agent.clients.replies import without_thinking
from s3_agent.errors import ConfigError
from s3_agent.guard import neutral, without_control
from s3_agent.questions import normalize_question
from s3_agent.selection import SelectionRule
from s3_agent.tags import bodies, cut_after_action, observation
from s3_agent.types import Action, ActionKind, Episode, Passage, Task

PromptName = Literal["instruct", "compact", "data"]
"""`instruct` explains the protocol, `compact` is only the question, `data` takes the text of the task's `prompt`."""

LIMITS = Limits(initial_topk=0, topk=3, max_observation_tokens=500, max_context_tokens=4096)
AGL_CHAT_LIMITS = LIMITS.model_copy(update={"max_observation_tokens": None, "max_context_tokens": 32768})
INVALID_ACTION = (
    "\nMy previous action is invalid. If I want to search, I should put the query between <search> and </search>. "
    "If I want to give the final answer, I should put the answer between <answer> and </answer>. Let me try again.\n"
)

_INSTRUCTIONS = """\
Answer the question below. Whenever you get new information, first reason about it between <think> and </think>. If \
you find that you lack some knowledge, call a search engine with <search> query </search>; the best results come back \
between <information> and </information>. Search as often as you want. When you need nothing more, give the answer \
between <answer> and </answer> without further explanation, for example <answer> Beijing </answer>. """
_QUESTION = "Question: "
_KINDS = {"search": ActionKind.SEARCH, "answer": ActionKind.ANSWER}


def parse(response: str) -> Action:
    """The first `<search>` or `<answer>` pair in text order; its body is stripped."""
    text = cut_after_action(response)
    pairs = [
        (start, end, tag)
        for tag in _KINDS
        if (end := text.rfind(f"</{tag}>")) >= 0 and 0 <= (start := text.find(f"<{tag}>")) < end
    ]
    if not pairs:
        return Action(kind=ActionKind.INVALID)
    start, _, tag = min(pairs)
    begin = start + len(tag) + 2
    body = text[begin : text.find(f"</{tag}>", begin)].strip()
    kind = _KINDS[tag]
    return Action(kind=kind, query=body) if kind is ActionKind.SEARCH else Action(kind=kind, answer=body)


def own_answer(episode: Episode) -> str:
    """The first `<answer>` that the policy wrote, else all that it wrote except its thinking ("(self)" rows).

    Unlike the original's, it does not include what the policy was shown: a document that holds the gold is not an
    answer (docs/originals.md#e8).
    """
    written = "".join(turn.response for turn in episode.turns)
    return next((body.strip() for body in bodies(written, "answer")), without_thinking(written))


class SearchR1Protocol:
    """Search-R1's tags as a text protocol for the turn loop."""

    stop: tuple[str, ...] = ("</search>", "</answer>")

    def __init__(self, prompt: PromptName = "instruct", *, agl_chat: bool = False) -> None:
        self._prompt: PromptName = prompt
        self.invalid_hint: str | None = None if agl_chat else INVALID_ACTION
        self.observation_role: Role = "user" if agl_chat else "assistant"

    def message(self, task: Task, passages: Sequence[Passage], control: frozenset[str] = frozenset()) -> str:
        return f"{self._instructions(task, control)}{_QUESTION}{neutral(normalize_question(task.question), control)}\n"

    def _instructions(self, task: Task, control: frozenset[str]) -> str:
        if self._prompt == "compact":
            return ""
        if self._prompt == "instruct":
            return _INSTRUCTIONS
        words, found, _ = (task.prompt or "").rpartition(_QUESTION)
        if not found:
            raise ConfigError(
                f"agent.prompt is `data`, but the prompt of task {task.id} does not hold {_QUESTION!r}",
                remedy="use rows with Search-R1's `prompt` column, or agent.prompt=instruct",
            )
        return without_control(words, control)

    def passages_in_data(self, task: Task) -> tuple[Passage, ...] | None:
        return None

    def parse(self, response: str) -> Action:
        return parse(response)

    def observation(self, passages: Sequence[Passage], control: frozenset[str] = frozenset()) -> str:
        return observation(passages, control)


class SearchR1Agent(SearchAgent):
    """The Search-R1 searcher. It gives its own answer, and selects every passage that it was shown, in order."""

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        prompt: PromptName = "instruct",
        selection: SelectionRule = "chronological",
        agl_chat: bool = False,
    ) -> None:
        super().__init__(
            "search_r1_agl_chat" if agl_chat else "search_r1",
            SearchR1Protocol(prompt, agl_chat=agl_chat),
            limits=limits or (AGL_CHAT_LIMITS if agl_chat else LIMITS),
            selection=selection,
        )


_METHOD = partial(
    Method,
    policy="protocol",
    sampling=Sampling(temperature=1.0, top_p=0.95),
    answers=("policy", "generator"),
    selection="chronological",
    prompts=("instruct", "compact", "data"),
    answer_prompt=AnswerPrompt(),
    uses=ALL_LIMITS - {"initial_topk"},
    tags=("search", "information", "answer", "think"),
    own_rewards=("exact_match", "format"),
    own_answer=own_answer,
)
METHOD = _METHOD(
    summary="reasons, searches and answers by itself",
    source="arXiv 2503.09516",
    make=SearchR1Agent,
    limits=LIMITS,
    protocol=SearchR1Protocol,
    entry="s3_agent.agl.entry:SearchR1Agent",
)
AGL_CHAT = _METHOD(
    summary="Search-R1 as Agent Lightning's example runs it over chat messages",
    source="Agent Lightning 1.0",
    make=partial(SearchR1Agent, agl_chat=True),
    limits=AGL_CHAT_LIMITS,
    protocol=partial(SearchR1Protocol, agl_chat=True),
    entry="s3_agent.agl.entry:SearchR1AglChatAgent",
    variant=True,
)
