"""Collects the metrics of a training run that show a collapse coming, and what the guard found, for all forms of the
report. The likelihood of correct responses falls first and the reward last, so they are shown over the same steps.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from s3_agent.agl.guard import VALIDATION, GuardReport, is_finite

SIGNS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "log-prob, nats": {"correct": ("actor/log_prob/correct",), "incorrect": ("actor/log_prob/incorrect",)},
    "change of log-prob in the step, nats": {
        "change, correct": ("actor/log_prob_change/correct",),
        "change, incorrect": ("actor/log_prob_change/incorrect",),
    },
    "entropy, nats": {"entropy": ("actor/sampled_entropy",)},
    "shares": {
        "questions without a gradient": ("s3/train/groups_without_gradient",),
        "tokens clipped": ("actor/pg_clipfrac",),
    },
    "searches": {"searches": ("s3/train/searches",)},
    "invalid actions": {"invalid actions": ("s3/train/invalid_actions",)},
    "reward, accuracy": {"reward": ("s3/train/reward", "training/reward"), "validation": VALIDATION},
}
"""The curves by panel; of several metrics, a step's value is the first that it has."""
_MOST_ROWS = 20
"""Steps in the Markdown table, beside those of the guard."""

Steps = Sequence[Mapping[str, Any]]
"""The metrics of each logged step, with the step itself as `step`."""


def signs_of(steps: Steps, guard: GuardReport | None) -> dict[str, Any]:
    """The curves as `panels[].{label, curves[].{name, points}}`, the `guard` (or None), and a `sentence` about it.

    A point is `[step, value]`. A metric that a step lacks or that was not finite has no point there; curves and panels
    without points are left out.
    """
    panels = []
    for label, curves in SIGNS.items():
        found = [{"name": name, "points": _points(steps, metrics)} for name, metrics in curves.items()]
        if found := [curve for curve in found if curve["points"]]:
            panels.append({"label": label, "curves": found})
    return {"panels": panels, "guard": guard and guard.model_dump(), "sentence": _sentence(guard)}


def _points(steps: Steps, metrics: Sequence[str]) -> list[list[float]]:
    found = ((row["step"], next((row[name] for name in metrics if row.get(name) is not None), None)) for row in steps)
    return [[step, value] for step, value in found if is_finite(value)]


def markdown_of(signs: Mapping[str, Any]) -> str:
    """The curves as a table with at most _MOST_ROWS steps, the first and the last among them, and what the guard found.

    The guard's step and the best one are always in the table.
    """
    curves = {curve["name"]: dict(curve["points"]) for panel in signs["panels"] for curve in panel["curves"]}
    steps = sorted({step for points in curves.values() for step in points})
    if not steps:
        return ""
    guard = signs["guard"]
    marked = {} if guard is None else {guard["step"]: "guard", guard["best_step"]: "best"}
    spaced = {steps[round(at * (len(steps) - 1) / (_MOST_ROWS - 1))] for at in range(_MOST_ROWS)}
    lines = [
        "## Signs of a collapse",
        "",
        f"| step | {' | '.join(curves)} |",
        f"| ---: |{' ---: |' * len(curves)}",
        *(
            f"| {step}{f' ({marked[step]})' if step in marked else ''} | "
            + " | ".join(f"{points[step]:.3f}" if step in points else "-" for points in curves.values())
            + " |"
            for step in steps
            if step in spaced or step in marked
        ),
        "",
        signs["sentence"],
    ]
    return "\n".join(lines)


def _sentence(guard: GuardReport | None) -> str:
    if guard is None:
        return "No rule of the guard has tripped."
    ended = "It stopped the run" if guard.stopped else "It only warned"
    return (
        f"The guard tripped after step {guard.step}: {guard.reason}. {ended}; step {guard.best_step} validated best "
        f"({guard.best_validation:.3f})."
    )
