"""What crosses between the supervisor and a worker process: one attempt to play, and what came of it."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Job(_Message):
    """One attempt at one rollout. `seconds` is the time it may take, `seed` what the trainer wants it sampled with.

    `environment` is what an env-contract class finds on top of the worker's own environment. With `log_path`, all that
    the class prints is kept in that file.
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


class Failure(_Message):
    """Why an attempt failed, by boundary. Not `retried`: the same attempt would fail in the same way again."""

    boundary: str
    message: str
    retried: bool = True


class Report(_Message):
    """What came of an attempt: a reward for the supervisor to post, or a failure.

    `record` holds fields of the rollout's EpisodeRecord; `output` is the end of what an env-contract class printed,
    which posts its reward itself.
    """

    attempt_id: str
    reward: float | None = None
    failure: Failure | None = None
    record: dict[str, Any] = {}
    output: str = ""
