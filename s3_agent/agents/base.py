"""The one turn loop, its limits as declared data, and what an agent is.

An agent differs from another by its protocol: a prompt, a parser, an observation. The loop that drives a policy and a
retriever is the same for all, appends token ids only, and so keeps every prompt an exact extension of the last.
"""

import re
from collections.abc import Sequence
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from s3_agent.clients.policy import Policy, Tokenizer
from s3_agent.clients.retriever import Retriever
from s3_agent.errors import ConfigError
from s3_agent.types import Action, ActionKind, Passage, StopReason, Task, Turn


class Limits(BaseModel):
    """What one episode may use. Token counts are in policy tokens; the defaults are s3's (spec §0, §11 A1).

    `max_searches=4` with a final generation is what the original calls three turns.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    initial_topk: int = Field(default=3, ge=0)
    topk: int = Field(default=8, ge=1)
    max_searches: int = Field(default=4, ge=0)
    final_generation: bool = True
    max_new_tokens: int = Field(default=500, ge=1)
    max_observation_tokens: int = Field(default=1400, ge=16)
    max_context_tokens: int = Field(default=8000, ge=64)

    @property
    def generations(self) -> int:
        """The most policy calls that one episode makes."""
        return self.max_searches + self.final_generation


class TextProtocol(Protocol):
    """How one method talks to its policy."""

    stop: tuple[str, ...]
    invalid_hint: str

    def prompt(self, question: str, passages: Sequence[Passage]) -> str:
        """The user message."""
        ...

    def parse(self, response: str) -> Action:
        """Read one response."""
        ...

    def observation(self, passages: Sequence[Passage]) -> str:
        """The text given back after a search."""
        ...


def normalize_question(question: str) -> str:
    """Strip, and end with a question mark (spec §1.8)."""
    question = question.strip()
    return question if question.endswith("?") else question + "?"


def fit_passages(
    passages: Sequence[Passage], render: TextProtocol, tokenizer: Tokenizer, *, max_tokens: int
) -> tuple[Passage, ...]:
    """The passages as they can be shown in `max_tokens`: the last shown one loses its tail, later ones are left out.

    The tags always close, and ids exist only for documents that are shown (spec §11 B3).
    """

    def tokens(shown: Sequence[Passage]) -> int:
        return len(tokenizer.encode(render.observation(shown)))

    if tokens(passages) <= max_tokens:
        return tuple(passages)
    # Long runs are parted, since some scripts put no spaces between words.
    words = [re.findall(r"\S{1,16}\s*", passage.text) for passage in passages]

    def first(count: int) -> tuple[Passage, ...]:
        shown: list[Passage] = []
        for passage, parts in zip(passages, words, strict=True):
            if count <= 0:
                break
            shown.append(passage.model_copy(update={"text": "".join(parts[:count]).rstrip()}))
            count -= len(parts)
        return tuple(shown)

    low, high = 0, sum(map(len, words))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if tokens(first(middle)) <= max_tokens else (low, middle - 1)
    return first(low)


async def play(
    task: Task,
    initial: Sequence[Passage],
    protocol: TextProtocol,
    limits: Limits,
    *,
    policy: Policy,
    retriever: Retriever,
) -> tuple[str, list[Turn], StopReason]:
    """Drive one episode: the prompt, its turns, and why it ended. Raises PolicyError and RetrieverError."""
    tokenizer = policy.tokenizer
    prompt = protocol.prompt(normalize_question(task.question), initial)
    ids = tokenizer.chat(prompt)
    if len(ids) >= limits.max_context_tokens:
        raise ConfigError(
            f"the first prompt of task {task.id} has {len(ids)} tokens, the context holds {limits.max_context_tokens}",
            remedy="lower `agent.limits.initial_topk` or raise `agent.limits.max_context_tokens`",
        )
    turns: list[Turn] = []
    for number in range(limits.generations):
        room = limits.max_context_tokens - len(ids)
        if room <= 0:
            return prompt, turns, StopReason.CONTEXT_FULL
        prompt_tokens = len(ids)
        completion = await policy.complete(ids, max_tokens=min(limits.max_new_tokens, room), stop=protocol.stop)
        ids += completion.token_ids
        response = tokenizer.decode(completion.token_ids)
        action = protocol.parse(response)
        passages, observation = None, ""
        ended = action.kind is ActionKind.FINISH or number >= limits.max_searches
        if not ended:
            if action.kind is ActionKind.SEARCH:
                found = await retriever.retrieve(action.query or "", topk=limits.topk)
                passages = fit_passages(found, protocol, tokenizer, max_tokens=limits.max_observation_tokens)
                observation = protocol.observation(passages)
            else:
                observation = protocol.invalid_hint
            ids += tokenizer.encode(observation)
        turns.append(
            Turn(
                response=response,
                passages=passages,
                action=action,
                observation=observation,
                prompt_tokens=prompt_tokens,
                response_tokens=len(completion.token_ids),
            )
        )
        if action.kind is ActionKind.FINISH:
            return prompt, turns, StopReason.FINISHED
    return prompt, turns, StopReason.FINAL_TURN_USED
