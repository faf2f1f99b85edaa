"""Compares training runs of several agents, seeds and controls on the same held-out questions.

`s3-agent compare` calls it. A question's score is the mean over an agent's seeds, as an exact fraction, and intervals
and tests are over questions: seeds that share their questions are not independent samples. The scores come from each
run's own greedy validation passes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import combinations
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from s3_agent.agl.guard import GuardReport
from s3_agent.data.tasks import load_tasks, read_jsonl
from s3_agent.errors import ConfigError
from s3_agent.evaluation.statistics.intervals import Difference, Estimate, difference_of, estimate_means, holm
from s3_agent.evaluation.statistics.tests import exact
from s3_agent.evaluation.summary import Summary, accuracies, kept_pass, validation_passes
from s3_agent.rollout.episode_log import read_records
from s3_agent.types import Task

NAIVE_RAG = "naive RAG"
MEASURE = "accuracy"
LEVEL = 0.05

Scores = dict[str, float]
Shares = dict[str, Fraction]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class TrainedRun(_Frozen):
    """One run: accuracies by question id of the policy that it began with and of the one that it keeps.

    `moved` is the largest change of a weight. If the guard stopped the run, it chose that policy by these questions.
    """

    name: str
    label: str
    seed: int
    before: Scores
    after: Scores
    searches_before: float | None
    searches_after: float | None
    reward_curve: list[float | None]
    moved: float
    guard: GuardReport | None = None
    rollouts: int
    lost_rollouts: int
    wall_seconds: float


class HopsRow(_Frozen):
    """Means over the questions with this number of hops."""

    hops: str
    n: int
    naive_rag: float | None
    before: float
    after: float


class AgentRow(_Frozen):
    """One agent over its seeds. `after_by_seed` holds each run's mean; `beyond_rag` compares with naive RAG."""

    label: str
    seeds: list[int]
    before: Estimate
    after: Estimate
    after_by_seed: list[float]
    gain: Difference
    beyond_rag: Difference | None
    by_hops: list[HopsRow]
    searches_before: float | None
    searches_after: float | None
    moved: float


class Check(_Frozen):
    """A condition that must hold if the learning is real. `control` conditions test the experiment, not an agent."""

    name: str
    holds: bool
    measured: str
    control: bool = False


class Comparison(_Frozen):
    """The whole comparison: the content of `comparison.json`."""

    naive_rag: Estimate | None
    agents: list[AgentRow]
    controls: list[AgentRow]
    pairs: list[Difference]
    checks: list[Check]
    runs: list[TrainedRun]

    @property
    def sound(self) -> bool:
        """Whether every control condition holds."""
        return all(check.holds for check in self.checks if check.control)


def read_run(folder: Path, *, label: str, seed: int, moved: float) -> TrainedRun:
    """The finished run in the folder. Raises ConfigError for a run without a summary."""
    try:
        summary = Summary.model_validate_json((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise ConfigError(f"{folder} is not a finished run: {cause}", remedy="continue the comparison") from cause
    records = read_records(folder / "episodes.jsonl")
    kept = kept_pass(records, read_jsonl(folder / "metrics.jsonl"), summary.guard)
    played = any(record.episode is not None for record in kept.values())
    return TrainedRun(
        name=folder.name,
        label=label,
        seed=seed,
        before=accuracies(validation_passes(records)[0]),
        after=accuracies(kept),
        searches_before=summary.searches_before if played else None,
        searches_after=summary.searches_after if played else None,
        reward_curve=summary.reward_curve,
        moved=moved,
        guard=summary.guard,
        rollouts=summary.rollouts,
        lost_rollouts=summary.lost_rollouts,
        wall_seconds=summary.wall_seconds,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _share(values: Iterable[float | Fraction]) -> Fraction:
    shares = [exact(value) for value in values]
    return sum(shares, Fraction()) / len(shares)


def _over_seeds(runs: Sequence[TrainedRun], side: Callable[[TrainedRun], Scores], keys: Sequence[str]) -> Shares:
    return {key: _share(side(run)[key] for run in runs) for key in keys}


def _estimate(scores: Mapping[str, float | Fraction]) -> Estimate:
    return estimate_means([{MEASURE: [float(score) for score in scores.values()]}])[MEASURE]


def _difference(
    first: tuple[str, Mapping[str, float | Fraction]], second: tuple[str, Mapping[str, float | Fraction]]
) -> Difference:
    found = difference_of(MEASURE, first, second)
    assert found is not None, "the questions are the same on both sides"
    return found


def _searches(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if known else None


def _row(runs: Sequence[TrainedRun], tasks: Mapping[str, Task], naive: Scores) -> AgentRow:
    """All runs of one label. Raises ConfigError when no question was scored in all of them."""
    scored = set.intersection(*({*run.before} & {*run.after} for run in runs))
    keys = [key for key in tasks if key in scored]
    if not keys:
        raise ConfigError(f"no question was scored in every run of {runs[0].label}", remedy="read their workers.log")
    before = _over_seeds(runs, lambda run: run.before, keys)
    after = _over_seeds(runs, lambda run: run.after, keys)
    by_hops = []
    for hops in sorted({str(tasks[key].hops) for key in keys}):
        those = [key for key in keys if str(tasks[key].hops) == hops]
        rag = _mean([naive[key] for key in those]) if naive else None
        sides = {"before": before, "after": after}
        means = {name: _mean([float(scores[key]) for key in those]) for name, scores in sides.items()}
        by_hops.append(HopsRow(hops=hops, n=len(those), naive_rag=rag, **means))
    return AgentRow(
        label=runs[0].label,
        seeds=[run.seed for run in runs],
        before=_estimate(before),
        after=_estimate(after),
        after_by_seed=[_mean([run.after[key] for key in keys]) for run in runs],
        gain=_difference(("before", before), ("after", after)),
        beyond_rag=_difference((NAIVE_RAG, {key: naive[key] for key in keys}), ("after", after)) if naive else None,
        by_hops=by_hops,
        searches_before=_searches([run.searches_before for run in runs]),
        searches_after=_searches([run.searches_after for run in runs]),
        moved=max(run.moved for run in runs),
    )


def _pairs(rows: Mapping[str, Shares]) -> list[Difference]:
    found = [_difference((one, rows[one]), (other, rows[other])) for one, other in combinations(rows, 2)]
    corrected = holm([one.p_value for one in found])
    return [one.model_copy(update={"p_holm": p}) for one, p in zip(found, corrected, strict=True)]


def _told(difference: Difference) -> str:
    return f"{difference.gain:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}], p = {difference.p_value:.2g}"


def _rises(difference: Difference) -> bool:
    return difference.gain > 0 and difference.p_value < LEVEL


def unseen(train: Sequence[Mapping], validation: Sequence[Mapping]) -> Check:
    """Check that validation has no training question and, where rows name an entity, no training entity."""
    asked = {str(row["question"]).casefold().strip() for row in train}
    again = sum(str(row["question"]).casefold().strip() in asked for row in validation)
    known = {row["entity"] for row in train if row.get("entity")}
    entities = {row["entity"] for row in validation if row.get("entity")}
    return Check(
        name="validation questions and entities are not in training",
        holds=not again and known.isdisjoint(entities),
        measured=f"{again} of {len(validation)} questions, {len(known & entities)} of {len(entities)} entities",
        control=True,
    )


def compare(
    runs: Sequence[TrainedRun], *, validation: Path, shuffled: str | None, frozen: str | None, split: Check
) -> Comparison:
    """The comparison of the runs, whose tasks are in `validation`.

    `shuffled` and `frozen` are the labels of the control runs with shuffled rewards and with the learning rate 0.
    """
    tasks = {task.id: task for task in load_tasks(validation)}
    naive = {key: task.rag_score for key, task in tasks.items() if task.rag_score is not None}
    naive = naive if len(naive) == len(tasks) else {}
    by_label = {
        label: [run for run in runs if run.label == label] for label in dict.fromkeys(run.label for run in runs)
    }
    rows = {label: _row(found, tasks, naive) for label, found in by_label.items()}
    controls = {label: rows.pop(label) for label in (shuffled, frozen) if label is not None}
    keys = [key for key in tasks if all(key in run.after for run in runs)]
    after = {label: _over_seeds(by_label[label], lambda run: run.after, keys) for label in rows}
    checks = [split]
    for label, row in rows.items():
        checks.append(Check(name=f"{label}: trained beats cloned", holds=_rises(row.gain), measured=_told(row.gain)))
        if (beyond := row.beyond_rag) is not None:
            name = f"{label}: trained beats {NAIVE_RAG}"
            checks.append(Check(name=name, holds=_rises(beyond), measured=_told(beyond)))
    if shuffled is not None:
        gain = controls[shuffled].gain
        name = "shuffled rewards do not raise it"
        checks.append(Check(name=name, holds=not _rises(gain), measured=_told(gain), control=True))
    if frozen is not None:
        moved = controls[frozen].moved
        name = "with the learning rate 0 no weight moves"
        checks.append(Check(name=name, holds=moved == 0, measured=f"largest change {moved:g}", control=True))
    return Comparison(
        naive_rag=_estimate(naive) if naive else None,
        agents=list(rows.values()),
        controls=list(controls.values()),
        pairs=_pairs(after),
        checks=checks,
        runs=list(runs),
    )
