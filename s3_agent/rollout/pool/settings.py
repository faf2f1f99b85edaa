"""How a pool claims and ends rollouts."""

from pydantic import BaseModel, ConfigDict, Field

from s3_agent.rollout.failure_policy import FailurePolicy


class PoolSettings(BaseModel):
    """Times are in seconds. `policy_calls` is how many policy calls the gateway passes at a time, if that is known.

    `allowed` are patterns of the env-contract classes that may run (`module:Class`, with `*`); none allows all, as the
    stock controller does. A rollout that is claimed and not finished `drain_s` after a stop fails without events.
    `episodes` and `pool_log` are files to append to: a record of each rollout that ended, and each step of each
    rollout.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gateway_url: str
    gateway_patience_s: float = 60.0
    policy_calls: int | None = Field(default=None, ge=1)
    pool_id: str = Field(default="pool", pattern=r"^[A-Za-z0-9_.-]+$")
    processes: int = Field(default=1, ge=1)
    drain_s: float = Field(default=600.0, ge=0)
    allowed: tuple[str, ...] = ()
    failure_policy: FailurePolicy = Field(default_factory=FailurePolicy)
    episodes: str | None = None
    pool_log: str | None = None
    agent_logs: str | None = None
