"""Methods that write a new prompt for every call: their shared loop, and one call of a policy.

Such a prompt does not continue what the policy wrote before, so a rollout would make one training row for each call.
These methods are therefore evaluated and not trained. Any model that follows instructions can play them.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar

from s3_agent.agents.base import Limits, first_passages, search
from s3_agent.clients.policy import Policy, Reply
from s3_agent.clients.retriever import Retriever
from s3_agent.errors import ConfigError, ContextFull
from s3_agent.selection import SelectionRule, select_passages
from s3_agent.types import Action, ActionKind, Episode, Passage, StopReason, Task, Turn

Ask = Callable[[str], Awaitable[str | None]]
"""One more call of the same policy within a turn; None if its prompt leaves no room for a reply."""


class Calls:
    """Calls of one policy, each in a separate conversation, and the tokens that they took since the last `taken`."""

    def __init__(self, policy: Policy, limits: Limits, *, window: int | None, template: bool = True) -> None:
        self._policy = policy
        self._limits = limits
        self._most = limits.max_context_tokens
        self._template = template
        if window is not None:
            self._most = min(self._most, window)
        self._prompt_tokens = self._response_tokens = 0

    async def ask(self, message: str) -> str | None:
        """The reply to one message, without control tokens; None when there is no room for one. Raises PolicyError."""
        conversation = self._policy.converse(message, template=self._template)
        read = conversation.used
        if read >= self._most:
            return None
        most = min(self._limits.max_new_tokens, self._most - read)
        try:
            reply: Reply = await conversation.generate(max_tokens=most, stop=())
        except ContextFull:
            return None
        self._prompt_tokens += conversation.used - reply.tokens  # the server's own count, if it gives one
        self._response_tokens += reply.tokens
        text = reply.text
        for token in self._policy.control:  # a turn's end would end the message that quotes the reply
            text = text.replace(token, "")
        return text

    async def first(self, task: Task, message: str) -> str:
        """The reply to a task's first message. Raises ConfigError when it does not fit, and PolicyError."""
        reply = await self.ask(message)
        if reply is None:
            raise ConfigError(
                f"the first prompt of task {task.id} does not fit the policy's context of {self._most} tokens",
                remedy="lower `agent.limits.topk`, or raise `agent.limits.max_context_tokens` and the server's window",
            )
        return reply

    def taken(self) -> tuple[int, int]:
        """Prompt and response tokens of the calls since the last call of this method."""
        taken = self._prompt_tokens, self._response_tokens
        self._prompt_tokens = self._response_tokens = 0
        return taken


class PromptedAgent(ABC):
    """An agent that writes a prompt from all that happened, reads the reply, searches for what it asks, and repeats."""

    name: ClassVar[str]

    def __init__(self, *, limits: Limits, selection: SelectionRule = "every") -> None:
        self._limits = limits
        self._selection: SelectionRule = selection

    @abstractmethod
    def message(self, task: Task, initial: Sequence[Passage], turns: Sequence[Turn], control: frozenset[str]) -> str:
        """The user message of the next call. `control` holds texts that `guard.neutral` breaks in passages."""

    @abstractmethod
    def parse(self, reply: str) -> Action:
        """A reply as a search, or as the end (`finish`)."""

    async def read(self, turns: Sequence[Turn], found: Turn, control: frozenset[str], ask: Ask) -> str | None:
        """The text about the passages in `found`, shown after `turns`; None if there was no room to read them."""
        return ""

    def answer(self, turns: Sequence[Turn]) -> str | None:
        """The method's own answer; None if it gives none."""
        return None

    async def run(self, task: Task, *, policy: Policy, retriever: Retriever) -> Episode:
        """Play `task`. Raises PolicyError, RetrieverError, and ConfigError for a first prompt that does not fit."""
        calls = Calls(policy, self._limits, window=await policy.window())
        initial = await first_passages(task, retriever, topk=self._limits.initial_topk)
        prompt = self.message(task, initial, (), policy.control)
        turns: list[Turn] = []
        stop_reason = StopReason.SEARCHES_USED
        while stop_reason is StopReason.SEARCHES_USED and len(turns) < self._limits.max_searches:
            message = self.message(task, initial, turns, policy.control)
            reply = await calls.ask(message) if turns else await calls.first(task, message)
            if reply is None:
                stop_reason = StopReason.CONTEXT_FULL
                break
            action = self.parse(reply)
            turn, observation = Turn(response=reply, action=action), None
            if action.kind is ActionKind.SEARCH:
                found = await search(retriever, action.query or "", task.question, topk=self._limits.topk)
                turn = turn.model_copy(update={"passages": found})
                observation = await self.read(turns, turn, policy.control, calls.ask)
                if observation is None:
                    stop_reason = StopReason.CONTEXT_FULL
            else:
                stop_reason = StopReason.FINISHED
            read, written = calls.taken()
            tokens = {"prompt_tokens": read, "response_tokens": written}
            turns.append(turn.model_copy(update={"observation": observation or "", **tokens}))
        return Episode(
            agent=self.name,
            prompt=prompt,
            initial_passages=initial,
            turns=tuple(turns),
            selected=select_passages(initial, turns, rule=self._selection),
            answer=self.answer(turns),
            stop_reason=stop_reason,
        )
