"""Defines what an agent is, the loop of turns that search agents share, and the limits of an episode.

s3 and Search-R1 differ only in their protocol: the prompt, the parser of responses, and the text of an observation. The
loop calls the policy and the retriever. It only appends to what the policy reads, so every prompt extends the previous
one.
"""

from collections.abc import Sequence
from functools import partial
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from s3_agent.clients.policy import Conversation, Policy, Role
from s3_agent.clients.retriever import QUERY_REFUSED, Retriever
from s3_agent.errors import ConfigError, ContextFull, RetrieverError
from s3_agent.fitting import fit_passages
from s3_agent.questions import normalize_question, retrieval_query
from s3_agent.selection import SelectionRule, select_passages
from s3_agent.types import Action, ActionKind, Episode, Passage, StopReason, Task, Turn

_ENDS = {ActionKind.FINISH: StopReason.FINISHED, ActionKind.ANSWER: StopReason.ANSWERED}


class Limits(BaseModel):
    """What one episode may use. Token counts are in policy tokens; the defaults are s3's (docs/originals.md#a1).

    `max_searches=4` with a final generation is what the original calls three turns. `initial_topk=0` shows no passages
    in the prompt. `max_context_tokens` limits prompt, responses and observations; an episode that fills it ends.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    initial_topk: int = Field(default=3, ge=0)
    topk: int = Field(default=8, ge=1)
    max_searches: int = Field(default=4, ge=0)
    final_generation: bool = True
    max_new_tokens: int = Field(default=500, ge=1)
    max_observation_tokens: int | None = Field(default=1400, ge=16)
    max_context_tokens: int = Field(default=8000, ge=64)

    @property
    def generations(self) -> int:
        """The largest number of policy calls that one episode makes."""
        return self.max_searches + self.final_generation


class TextProtocol(Protocol):
    """How one method talks to its policy.

    `control` has the texts, such as control tokens, that passages and questions must not bring to the policy:
    `s3_agent.guard.neutral` breaks them.
    """

    stop: tuple[str, ...]
    """Strings that end a response and are part of it. A server stops at the first four; for others, our client cuts the
    response."""
    invalid_hint: str | None
    """The text that follows a response without an action; None ends the episode there."""
    observation_role: Role
    """Whether observations continue the policy's own turn or are user messages."""

    def message(self, task: Task, passages: Sequence[Passage], control: frozenset[str]) -> str:
        """The user message that opens the episode. Raises ConfigError when the task lacks what it needs."""
        ...

    def passages_in_data(self, task: Task) -> tuple[Passage, ...] | None:
        """The initial passages that the task's own prompt shows; None when it shows none."""
        ...

    def parse(self, response: str) -> Action:
        """Read one response."""
        ...

    def observation(self, passages: Sequence[Passage], control: frozenset[str]) -> str:
        """The text that the policy reads after a search."""
        ...


class Agent(Protocol):
    """An algorithm that turns a task into an episode."""

    async def run(self, task: Task, *, policy: Policy, retriever: Retriever) -> Episode:
        """Play one task. Raises PolicyError and RetrieverError, but nothing for a malformed response."""
        ...


async def search(retriever: Retriever, query: str, question: str, *, topk: int) -> tuple[Passage, ...]:
    """The passages of a query; none if the server refuses this query but accepts the question itself.

    A refused query is the policy's fault and costs only this search; a server that refuses every query fails the
    attempt (docs/originals.md#a6).
    """
    try:
        return await retriever.retrieve(query, topk=topk)
    except RetrieverError as error:
        if error.status not in QUERY_REFUSED:
            raise
        await retriever.retrieve(question, topk=topk)
        return ()


def _too_long(task: Task, why: str) -> ConfigError:
    return ConfigError(
        f"the first prompt of task {task.id} is too long: {why}",
        remedy="lower `agent.limits.initial_topk`, or raise `agent.limits.max_context_tokens` and the policy server's "
        "window",
    )


def open_episode(
    task: Task, initial: Sequence[Passage], protocol: TextProtocol, *, policy: Policy, context: int, response: int
) -> tuple[Conversation, str, tuple[Passage, ...]]:
    """A conversation that starts with the first prompt, the text of this prompt, and the initial passages in it.

    If the prompt does not fit `context` tokens, passages are shortened or left out, so that there is room for a
    response of `response` tokens, or of half the context if that is less. Raises ConfigError if even the question does
    not fit.
    """

    def message(shown: Sequence[Passage]) -> str:
        return protocol.message(task, shown, policy.control)

    shown, prompt = tuple(initial), message(initial)
    conversation = policy.converse(prompt)
    if conversation.used >= context:
        room = context - min(response, context // 2)
        shown = fit_passages(initial, render=message, count=lambda text: policy.converse(text).used, max_tokens=room)
        prompt = message(shown)
        conversation = policy.converse(prompt)
    if conversation.used >= context:
        raise _too_long(task, f"it has {conversation.used} tokens, the context holds {context}")
    return conversation, prompt, shown


async def play(
    task: Task,
    conversation: Conversation,
    protocol: TextProtocol,
    limits: Limits,
    *,
    context: int,
    control: frozenset[str],
    retriever: Retriever,
) -> tuple[list[Turn], StopReason]:
    """Play the turns after the first prompt, in at most `context` tokens: returns the turns, and why the episode ended.

    Raises PolicyError, RetrieverError, and ConfigError for a first prompt that the policy's server counts as too long.
    """

    def render(passages: Sequence[Passage]) -> str:
        return protocol.observation(passages, control)

    turns: list[Turn] = []
    for number in range(limits.generations):
        prompt_tokens = conversation.used
        room = context - prompt_tokens
        if room <= 0:  # a chat server counted more tokens than we estimated
            return turns, StopReason.CONTEXT_FULL
        longest = min(limits.max_new_tokens, room)
        try:
            reply = await conversation.generate(max_tokens=longest, stop=protocol.stop)
        except ContextFull as full:
            if not turns:
                raise _too_long(task, full.message) from full
            return turns, StopReason.CONTEXT_FULL
        action = protocol.parse(reply.text)
        add = partial(
            Turn, response=reply.text, action=action, prompt_tokens=prompt_tokens, response_tokens=reply.tokens
        )
        if action.kind in _ENDS:
            return [*turns, add()], _ENDS[action.kind]
        if number >= limits.max_searches:
            return [*turns, add()], StopReason.FINAL_TURN_USED
        searching = action.kind is ActionKind.SEARCH
        # The next response needs room for at least one token.
        room = context - conversation.used - 1
        if not searching and protocol.invalid_hint is None:
            cut_off = room < 0 or limits.max_new_tokens > longest <= reply.tokens
            return [*turns, add()], StopReason.CONTEXT_FULL if cut_off else StopReason.INVALID
        passages, left_out, said = None, (), protocol.invalid_hint or ""
        if searching and conversation.count(render(())) <= room:
            found = await search(retriever, action.query or "", task.question, topk=limits.topk)
            most = room if limits.max_observation_tokens is None else min(room, limits.max_observation_tokens)
            passages = fit_passages(found, render=render, count=conversation.count, max_tokens=most)
            left_out, said = found[len(passages) :], render(passages)
        elif searching or conversation.count(said) > room:
            return [*turns, add()], StopReason.CONTEXT_FULL
        observation = conversation.observe(said, role=protocol.observation_role)
        turns.append(add(passages=passages, left_out=left_out, observation=observation))
    return turns, StopReason.FINAL_TURN_USED


async def first_passages(task: Task, retriever: Retriever, *, topk: int) -> tuple[Passage, ...]:
    """The passages of a search for the question itself, or the task's own initial passages if it has enough."""
    if topk == 0:
        return ()
    known = task.initial_passages
    if known is None or len(known) < topk:
        known = await retriever.retrieve(normalize_question(task.question), topk=topk)
    return known[:topk]


class SearchAgent:
    """An agent that consists of a protocol, limits and a selection rule. Its episodes record `name`."""

    def __init__(self, name: str, protocol: TextProtocol, *, limits: Limits, selection: SelectionRule) -> None:
        self._name = name
        self._protocol = protocol
        self._limits = limits
        self._selection: SelectionRule = selection

    async def run(self, task: Task, *, policy: Policy, retriever: Retriever) -> Episode:
        """Play `task`. A malformed response raises nothing; the episode contains it.

        Raises PolicyError, RetrieverError, and ConfigError for a question that the context can not hold.
        """
        limits, window = self._limits, await policy.window()
        context = limits.max_context_tokens if window is None else min(limits.max_context_tokens, window)
        found = await self._initial(task, retriever)
        conversation, prompt, initial = open_episode(
            task, found, self._protocol, policy=policy, context=context, response=limits.max_new_tokens
        )
        turns, stop_reason = await play(
            task,
            conversation,
            self._protocol,
            limits,
            context=context,
            control=policy.control,
            retriever=retriever,
        )
        last = turns[-1].action
        return Episode(
            agent=self._name,
            prompt=prompt,
            initial_passages=initial,
            initial_left_out=tuple(found[len(initial) :]),
            turns=tuple(turns),
            selected=select_passages(initial, turns, rule=self._selection),
            answer=last.answer if last else None,
            stop_reason=stop_reason,
        )

    async def _initial(self, task: Task, retriever: Retriever) -> tuple[Passage, ...]:
        topk = self._limits.initial_topk
        if topk == 0:
            return ()
        known = task.initial_passages
        if known is None:
            known = self._protocol.passages_in_data(task)
        if known is None:
            known = await retriever.retrieve(retrieval_query(task.question), topk=topk)
        return known[:topk]
