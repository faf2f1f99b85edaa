"""The types that all packages and processes share: task, passage, action, turn, episode, reward.

All are frozen pydantic models, so that another version can read an episode or refuse it with a reason. Selected
passages are fields of an episode; they are never recovered from its text (docs/originals.md#b2).
"""

from enum import StrEnum
from math import isnan
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from retrieval_server.passages import whole_text
from s3_agent.errors import ConfigError

SCHEMA_VERSION = 1
UNKNOWN_SOURCE = "unknown"
"""The data source of tasks that name none."""
_PROBLEMS = {
    "missing": "it lacks `{}`",
    "string_type": "`{}` is not a text",
    "string_pattern_mismatch": "`{}` is blank",
    "tuple_type": "`{}` is not a list",
}
"""Our words for pydantic's errors about a task, by their type."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def prompt_text(messages: Any) -> str | None:
    """The text of a prompt of one user message, after the system message's text if there is one; None for others."""
    found: list[Any] = [*messages] if hasattr(messages, "__iter__") and not isinstance(messages, str) else []
    if not all(isinstance(message, dict) for message in found):
        return None
    texts: list[Any] = [message.get("content") for message in found]
    if [message.get("role") for message in found] not in (["user"], ["system", "user"]):
        return None
    return "\n\n".join(texts) if all(isinstance(text, str) for text in texts) else None


class Passage(_Frozen):
    """One retrieved unit of the corpus. `id` is empty if neither the data nor the server gives one."""

    id: str
    title: str
    text: str

    @field_validator("id", "title", "text")
    @classmethod
    def _whole(cls, text: str) -> str:
        return whole_text(text)


class Evidence(_Frozen):
    """A document that the answer of a question needs, by its id in the corpus or else by its title.

    `answer` is true if the document holds the answer itself. `relevance` is its grade in TREC's sense, 1 or more.
    `pieces` are the ids of the passages that the document was split into, if it was: each of them counts as the
    document.
    """

    id: str = ""
    title: str = ""
    answer: bool = False
    relevance: int = Field(default=1, ge=1)
    pieces: tuple[str, ...] = ()

    @field_validator("id", "title", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        """Parquet holds null for a field that only other rows have; ids may be numbers."""
        if value is None:
            return ""
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("answer", "relevance", mode="before")
    @classmethod
    def _unknown(cls, value: Any, info: ValidationInfo) -> Any:
        return cls.model_fields[info.field_name or ""].default if value is None else value

    @field_validator("pieces", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [] if value is None else [*value] if hasattr(value, "__iter__") else value

    @model_validator(mode="after")
    def _named(self) -> Self:
        if not (self.id.strip() or self.title.strip()):
            raise ValueError("evidence needs an `id` or a `title`")
        return self


class Task(_Frozen):
    """One question with its gold answers.

    `initial_passages` is None when the agent has to retrieve them itself; `prompt` is the data's user message for an
    agent whose prompt is `data`, after the system message if there is one; `rag_score` is the stored naive-RAG score (0
    or 1), or None when unknown. `evidence` lists the documents that the answer needs, None if they are unknown. A task
    with evidence may have no gold answers: then only what was found is measured. `protected` is the canary of a set
    that is published encrypted: its questions, answers and trajectories may not be published in plain text.
    """

    id: str
    question: str = Field(pattern=r"\S")
    golden_answers: tuple[str, ...]
    data_source: str = UNKNOWN_SOURCE
    hops: int | None = None
    rag_score: float | None = Field(default=None, allow_inf_nan=False)
    initial_passages: tuple[Passage, ...] | None = None
    prompt: str | None = None
    protected: str | None = None
    evidence: tuple[Evidence, ...] | None = None

    @field_validator("evidence", mode="before")
    @classmethod
    def _none_is_unknown(cls, evidence: Any) -> Any:
        """An empty list is unknown evidence: no answer needs nothing. NumPy arrays come from pandas."""
        listed = [*evidence] if hasattr(evidence, "__iter__") and not isinstance(evidence, str) else evidence
        return None if listed == [] or (isinstance(listed, float) and isnan(listed)) else listed

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_message(cls, prompt: Any) -> Any:
        """Published rows hold a list of chat messages, a NumPy array once pandas has read it."""
        if prompt is None or isinstance(prompt, str):
            return prompt
        text = prompt_text(prompt)
        if text is None:
            raise ValueError(
                "prompt must be a text, or a list of one user message, with or without a system message before it"
            )
        return text

    @field_validator("id", mode="before")
    @classmethod
    def _number(cls, name: Any) -> Any:
        return str(name) if isinstance(name, int) and not isinstance(name, bool) else name

    @field_validator("rag_score", mode="before")
    @classmethod
    def _unknown_score(cls, score: Any) -> Any:
        """A missing score is NaN once pandas has read it."""
        return None if isinstance(score, float) and isnan(score) else score

    @model_validator(mode="after")
    def _some_answer(self) -> Self:
        if not (self.evidence or any(gold.strip() for gold in self.golden_answers)):
            raise ValueError("golden_answers needs at least one answer that is not blank")
        return self

    @property
    def answerable(self) -> bool:
        """Whether there is a gold answer to compare an answer with."""
        return any(gold.strip() for gold in self.golden_answers)

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Self:
        """A task from a dataset row or a gateway rollout's `input`; other fields are ignored."""
        try:
            return cls.model_validate({key: row[key] for key in cls.model_fields if key in row})
        except ValidationError as error:
            problems = [
                _PROBLEMS.get(problem["type"], "`{}`: {}" if problem["loc"] else "{1}").format(
                    ".".join(map(str, problem["loc"])), problem["msg"].removeprefix("Value error, ")
                )
                for problem in error.errors()
            ]
            raise ConfigError(
                "not a task row: " + "; ".join(problems),
                remedy="a task needs `id`, `question` and `golden_answers` (a list with at least one answer)",
            ) from error


class ActionKind(StrEnum):
    """What the policy asked for in one response."""

    SEARCH = "search"
    """Search for `query`."""
    FINISH = "finish"
    """Enough was found (s3, IRCoT, Search-o1); the generator answers."""
    ANSWER = "answer"
    """The policy's own answer (Search-R1): `answer` holds it."""
    INVALID = "invalid"
    """None of these."""


class Action(_Frozen):
    """One parsed response. `query` and `answer` are set for their kinds; `marked` is None without a selection tag."""

    kind: ActionKind
    query: str | None = None
    answer: str | None = None
    marked: tuple[int, ...] | None = None


class StopReason(StrEnum):
    """Why an episode ended."""

    FINISHED = "finished"
    """The policy declared the search complete (s3, IRCoT) or made no further search (Search-o1)."""
    ANSWERED = "answered"
    """The policy gave its own answer (Search-R1)."""
    FINAL_TURN_USED = "final_turn_used"
    """The search budget was used up, and the final response, after which there is no search, was generated."""
    CONTEXT_FULL = "context_full"
    """The episode fills `max_context_tokens` or the policy server's window; there is no room for another response."""
    SEARCHES_USED = "searches_used"
    """The method made all its searches, and generates nothing after the last one (RAG, IRCoT, Search-o1, …)."""
    INVALID = "invalid"
    """A response held no action, in a method that then ends without an answer: the score is 0 (Agent Lightning's chat
    variant of Search-R1, DeepRetrieval).
    """


class Turn(_Frozen):
    """One policy call, and the observation that followed.

    `response` is the text as the policy wrote it: the decoding of every sampled token, including what the last token
    holds after the stop string. `passages` are the documents shown in the observation that followed (None: nothing was
    searched; empty: the search found nothing, or the server refused this one query). `left_out` are the documents after
    them that were found too, but for which there was no room. Token counts are in policy tokens,
    over all calls of the turn (in Search-o1, a second call reads the documents).
    """

    response: str
    passages: tuple[Passage, ...] | None = None
    left_out: tuple[Passage, ...] = ()
    action: Action | None = None
    observation: str = ""
    prompt_tokens: int = 0
    response_tokens: int = 0


class Episode(_Frozen):
    """A trajectory, and the passages that were selected from it. `answer` is the policy's own; None if it gave none.

    `prompt` is what the first call read; it had no room for `initial_left_out`. In a method that asks no policy there
    are no `turns`.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    agent: str
    prompt: str
    initial_passages: tuple[Passage, ...]
    initial_left_out: tuple[Passage, ...] = ()
    turns: tuple[Turn, ...]
    selected: tuple[Passage, ...]
    answer: str | None = None
    stop_reason: StopReason

    @property
    def text(self) -> str:
        """What the policy read and wrote after the prompt, up to its last response or the observation after that."""
        text = "".join(turn.response + turn.observation for turn in self.turns)
        return text.removesuffix(self.turns[-1].observation) if self.turns else text

    @property
    def searches(self) -> int:
        """How many queries were sent to the retriever."""
        return sum(turn.passages is not None for turn in self.turns)


class RewardResult(_Frozen):
    """The scalar to train on, which is finite, and the scalars to log."""

    value: float = Field(allow_inf_nan=False)
    metrics: dict[str, float] = Field(default_factory=dict)
