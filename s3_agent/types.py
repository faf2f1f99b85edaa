"""The words that cross rooms and processes: task, passage, action, turn, episode, reward.

All are frozen pydantic models, so that an episode written by one version is read, or refused with a reason, by another.
Selected passages are fields of an episode; nothing is ever recovered from its text (design §3).
"""

from enum import StrEnum
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from s3_agent.errors import ConfigError

SCHEMA_VERSION = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Passage(_Frozen):
    """One retrieved unit of the corpus."""

    id: str
    title: str
    text: str

    @property
    def identity(self) -> tuple[str, ...]:
        """What makes two passages the same: the id, or title and text where a server gives no ids (spec §11 B4)."""
        return (self.id,) if self.id else (self.title, self.text)


class Task(_Frozen):
    """One question with its gold answers.

    `initial_passages` is None when the agent has to retrieve them itself; `rag_score` is the stored naive-RAG score
    (0 or 1), or None when unknown.
    """

    id: str
    question: str = Field(pattern=r"\S")
    golden_answers: tuple[str, ...] = Field(min_length=1)
    data_source: str = "unknown"
    hops: int | None = None
    rag_score: float | None = None
    initial_passages: tuple[Passage, ...] | None = None

    @field_validator("golden_answers")
    @classmethod
    def _some_answer(cls, golds: tuple[str, ...]) -> tuple[str, ...]:
        if not any(gold.strip() for gold in golds):
            raise ValueError("golden_answers needs at least one answer that is not blank")
        return golds

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Self:
        """A task from a dataset row or a gateway rollout's `input`; fields that are not a task's are ignored."""
        try:
            return cls.model_validate({key: row[key] for key in cls.model_fields if key in row})
        except ValueError as error:
            raise ConfigError(
                f"not a task row: {error}",
                remedy="a row needs `id`, `question` and `golden_answers` (a list with at least one answer)",
            ) from error


class ActionKind(StrEnum):
    """What the policy asked for in one response."""

    SEARCH = "search"
    FINISH = "finish"
    INVALID = "invalid"


class Action(_Frozen):
    """One parsed response. `query` is set for searches; `marked` is None when no selection tag was written."""

    kind: ActionKind
    query: str | None = None
    marked: tuple[int, ...] | None = None


class StopReason(StrEnum):
    """Why an episode ended."""

    FINISHED = "finished"
    """The policy declared the search complete."""
    FINAL_TURN_USED = "final_turn_used"
    """The search budget was used up and the final generation, in which nothing is searched, was taken."""
    CONTEXT_FULL = "context_full"
    """The next prompt and response would not fit the policy's context."""


class Turn(_Frozen):
    """One policy call and what it got back.

    `response` is the text as the policy wrote it; `passages` are the documents shown in the observation that followed
    (None: nothing was searched; empty: the search found nothing). Token counts are in policy tokens.
    """

    response: str
    passages: tuple[Passage, ...] | None = None
    action: Action | None = None
    observation: str = ""
    prompt_tokens: int = 0
    response_tokens: int = 0


class Episode(_Frozen):
    """A trajectory with what was selected from it."""

    schema_version: Literal[1] = SCHEMA_VERSION
    agent: str
    prompt: str
    initial_passages: tuple[Passage, ...]
    turns: tuple[Turn, ...]
    selected: tuple[Passage, ...]
    stop_reason: StopReason

    @property
    def text(self) -> str:
        """Everything after the prompt: responses and observations in order."""
        return "".join(turn.response + turn.observation for turn in self.turns)

    @property
    def searches(self) -> int:
        """How many queries were sent to the retriever."""
        return sum(turn.passages is not None for turn in self.turns)


class RewardResult(_Frozen):
    """The trained scalar and the logged ones."""

    value: float
    metrics: dict[str, float] = Field(default_factory=dict)
