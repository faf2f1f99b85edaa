"""Rules that recognise a training run which loses what it had learned, from the metrics of its steps. Pure.

The collapse of search agents under GRPO has been seen with many models; reward falls last, validation before it, and
the signs of both are in the metrics (docs/stability.md). `s3_agent.training.kept_best` watches a run with these rules.
"""

from collections.abc import Mapping, Sequence
from math import inf, isfinite
from statistics import median
from typing import Any, Literal, TypeGuard

from pydantic import BaseModel, ConfigDict, Field

VALIDATION = ("s3/val/accuracy", "s3/val/reward", "val/reward")
"""What a validation is judged by: the accuracy, or the reward of a class that reports no accuracy. The trainer's own
mean, in which failed rollouts count 0, is used only without an episode log."""
_SETTLED = 3
"""Steps before a gradient norm is compared with the earlier ones."""


class Guard(BaseModel):
    """When a run is said to lose what it had learned, and what is done then.

    `warn` logs the reason once; `stop` also ends the run and keeps the policy that validated best; `off` does neither.

    - `below_best`: a validation is this much below the best one (in accuracy, 0 to 1), for `validations` in a row. The
      default is about two standard errors of 200 questions at an accuracy of 0.5.
    - `invalid_actions`: the share of a step's responses without an action; above 0.5 most of what is sampled is noise.
      The rule counts once a step or a validation was below it: a policy that begins above it still learns the format.
    - `reward_share`: a step's mean reward is below this share of the best step's.
    - `gradient_norm`: the norm is so many times the median of the earlier steps; one that is not finite always counts.
    - `searches_at_limit`: the share of rollouts that used all searches; None, because some agents do so in good health.

    Rules about steps need `steps` steps in a row. None switches a rule off.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: Literal["off", "warn", "stop"] = "warn"
    below_best: float | None = Field(default=0.07, gt=0, le=1)
    validations: int = Field(default=2, ge=1)
    invalid_actions: float | None = Field(default=0.5, gt=0, le=1)
    reward_share: float | None = Field(default=0.25, gt=0, lt=1)
    gradient_norm: float | None = Field(default=50.0, gt=1)
    searches_at_limit: float | None = Field(default=None, gt=0, le=1)
    steps: int = Field(default=3, ge=1)


class GuardReport(BaseModel):
    """What the guard of a run found: why it tripped and after which step, and which step validated best (0: the policy
    that training began with)."""

    reason: str
    step: int
    stopped: bool
    best_step: int
    best_validation: float


Row = Mapping[str, Any]
"""A line of `metrics.jsonl`: `step` and `data`."""


def validation_of(row: Row) -> float | None:
    """The result of the validation that was logged with this step, if any."""
    return next((row["data"][name] for name in VALIDATION if row["data"].get(name) is not None), None)


def best_of(rows: Sequence[Row]) -> tuple[int, float] | None:
    """Step and result of the best validation, of equal ones the first; None before any."""
    found = [(row["step"], result) for row in rows if (result := validation_of(row)) is not None]
    return max(found, key=lambda pair: (pair[1], -pair[0]), default=None)


def tripped(guard: Guard, rows: Sequence[Row]) -> str | None:
    """Why the run should end after the last of these rows (all of the run, in order), in a sentence; None: it need not.

    >>> rows = [{"step": n, "data": {"s3/val/accuracy": 0.6 - 0.1 * n}} for n in range(3)]
    >>> tripped(Guard(below_best=0.05), rows)
    'validation was 0.400 after step 2, 2 times in a row more than 0.05 below the best (0.600 after step 0)'
    """
    if guard.action == "off" or not rows:
        return None
    return _below_best(guard, rows) or _of_steps(guard, rows)


def _below_best(guard: Guard, rows: Sequence[Row]) -> str | None:
    if guard.below_best is None or validation_of(rows[-1]) is None:
        return None
    validated = [row for row in rows if validation_of(row) is not None]
    run, best = 0, best_of(rows)
    assert best is not None, "the last row has a validation"
    for row in reversed(validated):
        if best[1] - (validation_of(row) or 0.0) <= guard.below_best or row["step"] < best[0]:
            break
        run += 1
    if run < guard.validations:
        return None
    return (
        f"validation was {validation_of(validated[-1]):.3f} after step {validated[-1]['step']}, {run} times in a row "
        f"more than {guard.below_best} below the best ({best[1]:.3f} after step {best[0]})"
    )


def _of_steps(guard: Guard, rows: Sequence[Row]) -> str | None:
    trained = [row["data"] for row in rows if "training/n_sample" in row["data"]]
    if len(trained) < guard.steps or "training/n_sample" not in rows[-1]["data"]:
        return None

    def series(name: str) -> list[float | None]:
        return [data.get(name) for data in trained]

    until = f"in the {guard.steps} steps until step {rows[-1]['step']}"
    invalid, at_limit = series("s3/train/invalid_actions"), series("s3/train/at_search_limit")
    logged = any(data.get("s3/train/reward") is not None for data in trained)  # the trainer's own counts failures as 0
    rewards, norms = series("s3/train/reward" if logged else "training/reward"), series("actor/grad_norm")
    if (
        guard.invalid_actions is not None
        and _above(invalid[-guard.steps :], guard.invalid_actions)
        and _was_valid(guard, rows)
    ):
        return f"more than {guard.invalid_actions} of the responses held no action {until} ({invalid[-1]:.2f} at last)"
    if guard.searches_at_limit is not None and _above(at_limit[-guard.steps :], guard.searches_at_limit):
        return f"more than {guard.searches_at_limit} of the rollouts used all their searches {until}"
    best = max((reward for reward in rewards if reward is not None), default=0.0)
    if guard.reward_share is not None and best > 0:
        floor = guard.reward_share * best
        if all(reward is not None and reward < floor for reward in rewards[-guard.steps :]):
            return f"the reward was below {guard.reward_share} of the best step's ({best:.3f}) {until}"
    usual = [norm for norm in norms[: -guard.steps] if is_finite(norm)]
    if guard.gradient_norm is not None:
        limit = guard.gradient_norm * median(usual) if len(usual) >= _SETTLED else inf
        if all(not is_finite(norm) or norm > limit > 0 for norm in norms[-guard.steps :]):
            return f"the gradient norm was not finite, or above {guard.gradient_norm} times its median, {until}"
    return None


def _was_valid(guard: Guard, rows: Sequence[Row]) -> bool:
    shares = (row["data"].get(f"s3/{split}/invalid_actions") for row in rows for split in ("train", "val"))
    return any(share is not None and share <= guard.invalid_actions for share in shares)


def _above(values: Sequence[float | None], limit: float) -> bool:
    return all(value is not None and value > limit for value in values)


def is_finite(value: float | None) -> TypeGuard[float]:
    """The trainer's log has null for a metric that was not a number."""
    return value is not None and isfinite(value)
