"""Metrics of a step's rollouts about search itself, for the trackers: the trainer knows only rewards and lengths."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Self

from s3_agent.rollout.episode_log import EpisodeRecord
from s3_agent.types import ActionKind, StopReason

SUMS, COUNTS = "actor/sums/", "actor/counts/"
"""Prefixes of what `s3_agent.agl.losses` sums over tokens, and of how many these are."""
AT_LIMIT = (StopReason.FINAL_TURN_USED, StopReason.SEARCHES_USED)
BOUNDARIES = ("policy", "retriever", "generator", "judge", "worker", "timeout")


def step_metrics(records: Sequence[EpisodeRecord]) -> dict[str, float]:
    """Means over the rollouts that succeeded, counts over all, by `s3/train/…` and `s3/val/…`.

    `reward` is that of the rollouts that succeeded (the trainer's own mean counts the others as 0), `rag_baseline`
    naive RAG's accuracy on the same questions, `invalid_actions` a share of all responses, `answers_kept` the share of
    answers that were kept earlier, so that the generator was not asked again, `groups_without_gradient` the share of
    questions whose rollouts, spare ones included, all got the same reward. `retries/…` counts attempts that failed
    and were tried again, or given up, by the boundary at fault. `answers_untrained` counts the policy's answers that
    are in no training row (`s3_agent.rollout.pool.recorded`), of agents other than ours.
    """
    metrics: dict[str, float] = {}
    for split, is_train in (("train", True), ("val", False)):
        if chosen := [record for record in records if record.is_train is is_train]:
            metrics |= {f"s3/{split}/{name}": value for name, value in _of(chosen).items()}
    return metrics


@dataclass(frozen=True, slots=True)
class Batch:
    """What the trainer plans for a step: `questions` with `rollouts` each are played, and all but `spare` trained.

    verl has no such number: the questions beyond the last update that a step may make are not trained.
    """

    questions: int
    rollouts: int
    spare: int

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Self:
        """The plan of a configuration of verl and Agent Lightning."""
        actor_rollout, questions = config["actor_rollout_ref"], config["data"]["train_batch_size"]
        updates = config["agentlightning"].get("max_ppo_update_times")
        trained = questions if updates is None else updates * actor_rollout["actor"]["ppo_mini_batch_size"]
        return cls(questions, actor_rollout["rollout"]["n"], spare=max(0, questions - trained))


def batch_metrics(trainer: Mapping[str, Any], *, batch: Batch | None, groups_of_one: int | None) -> dict[str, float]:
    """What was not trained in a step, from the trainer's own metrics: all 0 in a healthy run; empty without a step.

    `rows_dropped` and `groups_gone` count rows that were thrown away and questions without any row left, of the step's
    questions; `rollouts_untrained` counts rollouts without a row in an update, whether lost or dropped; as many as the
    spare questions have do not count. `groups_of_one` counts questions with one rollout left, whose advantage is 0.
    What is not known is left out.
    """
    if "training/n_sample_trained" not in trainer:
        return {}
    spare = 0 if batch is None else batch.spare * batch.rollouts
    trained = trainer.get("training/rollout_level_advantage/n_rollouts")
    dropped = sum(value for name, value in trainer.items() if name.startswith("training/n_sample_dropped/"))
    counts = {
        "rows_dropped": max(0, dropped - spare),
        "rollouts_untrained": None if trained is None else max(0, trainer["training/n_rollouts"] - trained - spare),
        "groups_gone": None if batch is None else max(0, batch.questions - batch.spare - trainer["training/n_groups"]),
        "groups_of_one": groups_of_one,
    }
    return {f"s3/train/{name}": float(count) for name, count in counts.items() if count is not None}


def likelihood_metrics(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """The trainer's metrics with means over tokens in place of sums and counts, as `actor/log_prob/correct`, …"""
    kept = {name: value for name, value in trainer.items() if not name.startswith((SUMS, COUNTS))}
    for name, value in trainer.items():
        if name.startswith(SUMS) and (count := trainer[COUNTS + name.removeprefix(SUMS)]):
            kept["actor/" + name.removeprefix(SUMS)] = float(value / count)
    return kept


def _of(records: Sequence[EpisodeRecord]) -> dict[str, float]:
    ended = [record for record in records if record.state == "succeeded"]
    episodes = [record.episode for record in ended if record.episode is not None]
    turns = [turn for episode in episodes for turn in episode.turns]
    retries = Counter(failure.boundary for record in records for failure in record.failures)
    means = {
        "reward": _mean(record.reward for record in ended),
        "accuracy": _mean(record.accuracy for record in ended),
        "gbr": _mean(record.gbr for record in ended),
        "rag_baseline": _mean(record.task.rag_score for record in ended if record.task is not None),
        "searches": _mean(episode.searches for episode in episodes),
        "at_search_limit": _mean(episode.stop_reason in AT_LIMIT for episode in episodes),
        "turns": _mean(len(episode.turns) for episode in episodes),
        "selected": _mean(len(episode.selected) for episode in episodes),
        "invalid_actions": _mean(turn.action is None or turn.action.kind is ActionKind.INVALID for turn in turns),
        "answers_kept": _mean(record.metrics.get("answer_kept") for record in ended),
        "contexts_cut": _mean(record.metrics.get("context_cut") for record in ended),
        "answers_cut": _mean(record.metrics.get("answer_cut") for record in ended),
        "judge_unclear": _mean(record.metrics.get("judge_unclear") for record in ended),
    }
    measured = sorted({name for record in ended for name in record.metrics if name.startswith("evidence_")})
    means |= {name: _mean(record.metrics.get(name) for record in ended) for name in measured}
    counts = {
        "rollouts": float(len(records)),
        "failed": float(len(records) - len(ended)),
        **{f"retries/{boundary}": float(retries[boundary]) for boundary in {*BOUNDARIES, *retries}},
    }
    if records[0].is_train:
        means["groups_without_gradient"] = _without_gradient(ended)
        counts["answers_untrained"] = sum(record.metrics.get("answers_untrained", 0.0) for record in ended)
    return {name: value for name, value in means.items() if value is not None} | counts


def _without_gradient(ended: Sequence[EpisodeRecord]) -> float | None:
    """The share of questions whose rollouts, two or more, all got the same reward."""
    rewards: dict[str, list[float | None]] = defaultdict(list)
    for record in ended:
        if record.task is not None:
            rewards[record.task.id].append(record.reward)
    return _mean(len(set(group)) == 1 for group in rewards.values() if len(group) > 1)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
