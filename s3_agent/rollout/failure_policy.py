"""When a failed attempt is tried again: declared as data, so that it can be read, set and tested without a pool.

A rollout that is given up costs the trainer a row. By default it is therefore tried again until its own deadline,
unless the same attempt would fail in the same way again (docs/originals.md#f3).
"""

import random

from pydantic import BaseModel, ConfigDict, Field

from s3_agent.rollout.jobs import Failure

WORKER = "worker"
AGENT = "agent"
REWARD = "reward"
TIMEOUT = "timeout"
DEADLINE = "deadline"
GONE = "gone"
STOPPED = "stopped"
IMPORT = "agent-import"
NOT_ALLOWED = "agent-not-allowed"


class FailurePolicy(BaseModel):
    """`retried` names the boundaries that are tried again; waits are in seconds and double from the first.

    `attempt_timeout_s` ends an attempt that hangs while there is time for another one. With None, an attempt may take
    all of the rollout's time, as under the stock controller. `most_attempts` limits the number of attempts; None means
    until the deadline.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    retried: frozenset[str] = frozenset({"policy", "retriever", "generator", "judge", REWARD, WORKER, AGENT, TIMEOUT})
    first_wait_s: float = Field(default=0.5, ge=0)
    longest_wait_s: float = Field(default=30.0, ge=0)
    attempt_timeout_s: float | None = Field(default=None, gt=0)
    most_attempts: int | None = Field(default=None, ge=1)

    def seconds(self, left: float) -> float:
        """How long an attempt may take when the rollout has `left` seconds."""
        return left if self.attempt_timeout_s is None else min(left, self.attempt_timeout_s)

    def retries(self, failure: Failure) -> bool:
        """Whether an attempt that failed in this way is tried again at all."""
        return failure.retried and failure.boundary in self.retried

    def wait(self, failure: Failure, *, attempts: int, left: float) -> float | None:
        """Seconds to wait for the next attempt after `attempts` attempts; None: the rollout is given up."""
        if not self.retries(failure):
            return None
        if self.most_attempts is not None and attempts >= self.most_attempts:
            return None
        # The exponent is bounded: an hour of tries must not overflow.
        wait = min(self.longest_wait_s, self.first_wait_s * 2 ** min(attempts - 1, 30)) * random.uniform(0.75, 1.0)
        return wait if wait < left else None
