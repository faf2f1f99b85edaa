"""The messages between the supervisor and a worker process: one attempt to play, and its result."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from s3_agent.errors import ConfigError


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Job(_Message):
    """One attempt at one rollout. `seconds` is the time it may take, `seed` the trainer's seed for its sampling.

    `environment` holds the variables that an env-contract class gets in addition to the worker's own environment. With
    `log_path`, everything that the class prints is kept in that file.
    """

    rollout_id: str
    attempt_id: str
    is_train: bool
    input: Any
    policy_url: str
    event_url: str
    seconds: float
    seed: int | None = None
    agent_class: str | None = None
    environment: dict[str, str] = {}
    log_path: str | None = None

    def as_json(self) -> str:
        """The line that a worker reads. Raises ConfigError for an input that can not be written in UTF-8."""
        try:
            return self.model_dump_json()
        except ValueError as cause:
            raise ConfigError(
                f"the input of rollout {self.rollout_id} can not be sent to a worker: {cause}",
                remedy="correct that row of the data set: half a surrogate pair is not a character",
            ) from cause


class Failure(_Message):
    """Why an attempt failed, by boundary. `retried` is false when the same attempt would fail in the same way again."""

    boundary: str
    message: str
    retried: bool = True

    @field_validator("message", mode="before")
    @classmethod
    def _can_be_sent(cls, message: Any) -> Any:
        """Escape half surrogate pairs: a failure whose text holds one must still be reported."""
        return message.encode(errors="backslashreplace").decode() if isinstance(message, str) else message


class AttemptResult(_Message):
    """The result of an attempt: a finite reward for the supervisor to post, or a failure.

    `record` holds fields of the rollout's EpisodeRecord; `output` is the end of what an env-contract class printed;
    such a class posts its reward itself.
    """

    attempt_id: str
    reward: float | None = Field(default=None, allow_inf_nan=False)
    failure: Failure | None = None
    record: dict[str, Any] = {}
    output: str = ""
