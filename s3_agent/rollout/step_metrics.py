"""What a step's rollouts say of search itself, for the trackers: the trainer knows their rewards and lengths alone."""

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean

from s3_agent.rollout.episode_log import EpisodeRecord
from s3_agent.types import ActionKind

BOUNDARIES = ("policy", "retriever", "generator", "judge", "worker", "timeout")


def step_metrics(records: Sequence[EpisodeRecord]) -> dict[str, float]:
    """Means over the rollouts that succeeded, counts over all, by `s3/train/…` and `s3/val/…`.

    `rag_baseline` is naive RAG's accuracy on the same questions, `invalid_actions` a share of all responses,
    `answers_kept` the share of answers that the generator was not asked for again. `retries/…` counts attempts that
    failed and were tried again, or given up, by the boundary at fault.
    """
    metrics: dict[str, float] = {}
    for split, is_train in (("train", True), ("val", False)):
        if chosen := [record for record in records if record.is_train is is_train]:
            metrics |= {f"s3/{split}/{name}": value for name, value in _of(chosen).items()}
    return metrics


def _of(records: Sequence[EpisodeRecord]) -> dict[str, float]:
    ended = [record for record in records if record.state == "succeeded"]
    episodes = [record.episode for record in ended if record.episode is not None]
    turns = [turn for episode in episodes for turn in episode.turns]
    retries = Counter(failure.boundary for record in records for failure in record.failures)
    means = {
        "accuracy": _mean(record.accuracy for record in ended),
        "gbr": _mean(record.gbr for record in ended),
        "rag_baseline": _mean(record.task.rag_score for record in ended if record.task is not None),
        "searches": _mean(episode.searches for episode in episodes),
        "turns": _mean(len(episode.turns) for episode in episodes),
        "selected": _mean(len(episode.selected) for episode in episodes),
        "invalid_actions": _mean(turn.action is None or turn.action.kind is ActionKind.INVALID for turn in turns),
        "answers_kept": _mean(record.metrics.get("answer_kept") for record in ended),
        "contexts_cut": _mean(record.metrics.get("context_cut") for record in ended),
        "answers_cut": _mean(record.metrics.get("answer_cut") for record in ended),
        "judge_unclear": _mean(record.metrics.get("judge_unclear") for record in ended),
    }
    counts = {
        "rollouts": float(len(records)),
        "failed": float(len(records) - len(ended)),
        **{f"retries/{boundary}": float(retries[boundary]) for boundary in {*BOUNDARIES, *retries}},
    }
    return {name: value for name, value in means.items() if value is not None} | counts


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
