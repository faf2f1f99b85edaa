"""Computes a training run's summary from the episodes that the workers and the metrics that the trainer wrote.

Rewards are averaged over the episodes, because the trainer's own means count a failed rollout as 0
(docs/originals.md#f4).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import batched
from math import inf
from typing import Any

from pydantic import BaseModel

from s3_agent.agl.guard import GuardReport, best_of, is_finite, validation_of
from s3_agent.errors import S3AgentError
from s3_agent.evaluation.statistics.intervals import difference_of
from s3_agent.rollout.episode_log import EpisodeRecord
from s3_agent.rollout.failure_policy import STOPPED
from s3_agent.types import Task

MetricRow = dict[str, Any]


class Summary(BaseModel):
    """The content of `summary.json`. Accuracies are shares of questions; `rows_per_rollout` must be 1 in a healthy run.

    `val_n` counts the questions scored in both passes, `val_missing` those left out because one of their rollouts
    failed. `unfinished_rollouts` were in play when the last step of an asynchronous run had ended. `contexts_cut`
    counts answers whose passages did not fit the generator's window, `answers_cut` answers that ended at the
    generator's token limit, `judge_unclear` verdicts that were neither yes nor no. `nonfinite_steps` counts steps whose
    gradient norm was not finite; `grad_norm_max` is over the others. `test` names the test behind
    `p_value` (`intervals.Difference`). Fields that compare with naive RAG are None in a run without a naive-RAG cache.
    `changes` lists the settings that changed when the run was resumed, and after which step. `guard` is what the guard
    found (`trainer.guard`); if it stopped the run, `…_after` and the gain are of the policy that was kept, and of the
    steps that were not played none counts as skipped. `best_step` is the step after which validation was best (0:
    before the first), `best_validation` its result as it was logged, and `kept_validation` that of the policy which the
    run keeps.
    """

    steps: int
    rollouts: int
    lost_rollouts: int
    unfinished_rollouts: int = 0
    rows_per_rollout: float
    dropped_rows: int
    truncated_rows: int
    skipped_steps: int
    nonfinite_steps: int
    grad_norm_max: float
    logprob_gap_max: float | None
    reward_curve: list[float | None]
    trainer_reward_curve: list[float]
    val_before: float
    val_after: float
    val_n: int
    val_missing: int
    val_gain: float
    val_gain_interval: tuple[float, float]
    p_value: float
    test: str = "mcnemar"
    naive_rag: float | None
    gbr_after: float | None
    p_value_naive_rag: float | None
    by_hops: dict[str, dict[str, float]]
    searches_before: float
    searches_after: float
    contexts_cut: int
    answers_cut: int = 0
    judge_unclear: int
    start_up_seconds: dict[str, float]
    wall_seconds: float
    versions: dict[str, str]
    changes: list[str] = []
    guard: GuardReport | None = None
    best_step: int | None = None
    best_validation: float | None = None
    kept_validation: float | None = None


def training_rows(metrics: Sequence[MetricRow]) -> list[dict[str, Any]]:
    """The metrics of training steps, without the validation before the first."""
    return [row["data"] for row in metrics if "training/n_sample" in row["data"]]


def logprob_gap(metrics: Sequence[MetricRow], *, after_step: int = 0) -> float | None:
    """The largest mean difference of a step between the policy server's and the trainer's log-probs, in nats."""
    gaps = (row["data"].get("rollout_corr/log_ppl_abs_diff") for row in metrics if row["step"] > after_step)
    return max(filter(is_finite, gaps), default=None)


def validation_passes(records: Sequence[EpisodeRecord]) -> list[dict[str, EpisodeRecord]]:
    """Validation records by question id, one mapping per pass: the i-th rollout of a question belongs to pass i."""
    seen: dict[str, list[EpisodeRecord]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.finished_at):
        if not record.is_train and record.task is not None:
            seen[record.task.id].append(record)
    passes = max(map(len, seen.values()), default=0)
    return [{key: found[number] for key, found in seen.items() if len(found) > number} for number in range(passes)]


def kept_pass(
    records: Sequence[EpisodeRecord], metrics: Sequence[MetricRow], guard: GuardReport | None
) -> dict[str, EpisodeRecord]:
    """The validation pass of the policy that a run keeps: the last one, or the best one if the guard stopped the run.

    The best pass is found by the times at which steps were logged, because a killed run can have played a pass that it
    never logged.
    """
    if guard is None or not guard.stopped:
        return validation_passes(records)[-1]
    logged = {row["step"]: row["at"] for row in metrics}
    began = max((at for step, at in logged.items() if step < guard.best_step), default=-inf)
    return {
        record.task.id: record
        for record in sorted(records, key=lambda record: record.finished_at)
        if not record.is_train and record.task is not None and began < record.finished_at <= logged[guard.best_step]
    }


def _validations(metrics: Sequence[MetricRow], guard: GuardReport | None) -> dict[str, Any]:
    """The fields of a summary about the best validation and that of the kept policy."""
    if (best := best_of(metrics)) is None:
        return {}
    logged = [row for row in metrics if validation_of(row) is not None]
    kept = guard.best_step if guard is not None and guard.stopped else logged[-1]["step"]
    kept_validation = next((validation_of(row) for row in logged if row["step"] == kept), None)
    return {"best_step": best[0], "best_validation": best[1], "kept_validation": kept_validation}


def reward_curve(records: Sequence[EpisodeRecord], *, rollouts_per_step: int) -> list[float | None]:
    """Mean reward of each step's succeeded training rollouts, ordered by end; None if all rollouts of a step failed."""
    trained = sorted((record for record in records if record.is_train), key=lambda record: record.finished_at)
    curve = []
    for step in batched(trained, rollouts_per_step):
        rewards = [record.reward for record in step if record.reward is not None]
        curve.append(_mean(rewards) if rewards else None)
    return curve


def accuracies(records: Mapping[str, EpisodeRecord]) -> dict[str, float]:
    """Scores by question id: the accuracy, or the reward if no answer was checked."""
    scores = {key: record.reward if record.accuracy is None else record.accuracy for key, record in records.items()}
    return {key: score for key, score in scores.items() if score is not None}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def summarize(
    *,
    records: Sequence[EpisodeRecord],
    metrics: Sequence[MetricRow],
    validation: Sequence[Task],
    steps: int,
    rollouts_per_step: int,
    wall_seconds: float,
    start_up_seconds: dict[str, float],
    versions: dict[str, str],
    changes: Sequence[str] = (),
    guard: GuardReport | None = None,
) -> Summary:
    """The summary of a finished run. Raises S3AgentError without two complete validation passes to compare.

    One is enough if the guard stopped the run before the second: it keeps the policy that training began with.
    """
    passes = validation_passes(records)
    stopped = guard is not None and guard.stopped
    if len(passes) < 2 - stopped:
        raise S3AgentError(
            f"the run has {len(passes)} validation passes, its summary compares the first and the last",
            remedy="read trainer.log: the run did not validate before and after training",
        )
    last = kept_pass(records, metrics, guard)
    if guard is not None and guard.stopped:
        steps, metrics = guard.step, [row for row in metrics if row["step"] <= guard.step]
    before, after = accuracies(passes[0]), accuracies(last)
    both = before.keys() & after.keys()
    tasks = {task.id: task for task in validation if task.id in both}
    if not tasks:
        raise S3AgentError(
            "no validation question was scored both before and after training",
            remedy="read workers.log: every validation rollout failed in one of the passes",
        )
    before, after = ({key: scores[key] for key in tasks} for scores in (before, after))
    naive = {key: task.rag_score for key, task in tasks.items() if task.rag_score is not None}
    # A reward of ours that checks no answer can not be compared with naive RAG's accuracy.
    unanswered = any(last[key].accuracy is None and last[key].episode is not None for key in tasks)
    if len(naive) < len(tasks) or unanswered:
        naive = {}
    naive_rag = _mean([*naive.values()]) if naive else None
    gain = difference_of("accuracy", ("before", before), ("after", after))
    beyond_rag = difference_of("accuracy", ("naive RAG", naive), ("after", after))
    assert gain is not None, "there are tasks"
    trained = training_rows(metrics)
    # An asynchronous trainer leaves rollouts behind when it ends: the pool is stopped while it plays them.
    known, records = len(records), [record for record in records if record.boundary != STOPPED or not record.is_train]
    collected = sum(row["training/n_sample"] for row in trained)
    rollouts = sum(row["training/n_rollouts"] for row in trained)
    by_hops = {}
    for hops in sorted({str(task.hops) for task in tasks.values()}):
        keys = [key for key, task in tasks.items() if str(task.hops) == hops]
        by_hops[hops] = {
            "n": len(keys),
            **({"naive_rag": _mean([naive[key] for key in keys])} if naive else {}),
            "before": _mean([before[key] for key in keys]),
            "after": _mean([after[key] for key in keys]),
        }

    def searches(records: dict[str, EpisodeRecord]) -> float:
        return _mean([record.episode.searches for record in records.values() if record.episode is not None])

    def counted(metric: str) -> int:
        return int(sum(record.metrics.get(metric, 0.0) for record in records))

    return Summary(
        steps=len(trained),
        rollouts=len(records),
        lost_rollouts=sum(record.state == "failed" for record in records)
        + max(0, rollouts - sum(record.is_train for record in records)),
        unfinished_rollouts=known - len(records),
        rows_per_rollout=collected / rollouts if rollouts else 0.0,
        dropped_rows=int(sum(row.get("s3/train/rows_dropped", 0.0) for row in trained)),
        truncated_rows=int(sum(row["training/n_truncated_sample"] for row in trained)),
        skipped_steps=steps - len(trained),
        nonfinite_steps=sum(not is_finite(row["actor/grad_norm"]) for row in trained),
        grad_norm_max=max(filter(is_finite, (row["actor/grad_norm"] for row in trained)), default=0.0),
        logprob_gap_max=logprob_gap(metrics),
        reward_curve=reward_curve(records, rollouts_per_step=rollouts_per_step)[:steps],
        trainer_reward_curve=[row["training/reward"] for row in trained],
        val_before=gain.first_mean,
        val_after=gain.second_mean,
        val_n=gain.n,
        val_missing=len(validation) - gain.n,
        val_gain=gain.gain,
        val_gain_interval=(gain.low, gain.high),
        p_value=gain.p_value,
        test=gain.test,
        naive_rag=naive_rag,
        gbr_after=beyond_rag and beyond_rag.gain,
        p_value_naive_rag=beyond_rag and beyond_rag.p_value,
        by_hops=by_hops,
        searches_before=searches(passes[0]),
        searches_after=searches(last),
        contexts_cut=counted("context_cut"),
        answers_cut=counted("answer_cut"),
        judge_unclear=counted("judge_unclear"),
        start_up_seconds=start_up_seconds,
        wall_seconds=wall_seconds,
        versions=versions,
        guard=guard,
        changes=list(changes),
        **_validations(metrics, guard),
    )
