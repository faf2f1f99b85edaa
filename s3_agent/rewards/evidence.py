"""Rewards by the documents that were selected: how many of those that the answer needs are among them.

They read `Task.evidence` and the episode, so no generator is asked: a searcher can be trained without one.
"""

from functools import partial

from s3_agent.evidence import GoldDocuments, share_found
from s3_agent.rewards.registry import Reward, Scored
from s3_agent.types import RewardResult


def f2(precision: float, recall: float) -> float:
    """The F-measure that weighs recall four times as much as precision."""
    return 5 * precision * recall / (4 * precision + recall) if precision + recall else 0.0


def evidence_metrics(scored: Scored) -> dict[str, float]:
    """Recall, precision and F2 of the selected documents, and the recall of all that the episode was shown (`found`);
    the recall of documents that hold the answer, if it is known which do. Raises ValueError without evidence.
    """
    task, episode = scored.task, scored.episode
    if task.evidence is None:
        raise ValueError(
            f"task {task.id} has no evidence: give its documents in `evidence`, or train by another reward"
        )
    gold = GoldDocuments(task.evidence)
    shown = (passage for turn in episode.turns for passage in turn.passages or ())
    selected, found = gold.ranking(episode.selected), gold.ranking((*episode.initial_passages, *shown))
    recall = share_found(gold.names, selected)
    precision = recall * len(gold.names) / len(selected) if selected else 0.0
    metrics = {
        "evidence_recall": recall,
        "evidence_precision": precision,
        "evidence_f2": f2(precision, recall),
        "evidence_found": share_found(gold.names, found),
    }
    if gold.answers:
        metrics |= {
            "evidence_answer_recall": share_found(gold.answers, selected),
            "evidence_answer_found": share_found(gold.answers, found),
        }
    return metrics


def _score(scored: Scored, *, metric: str) -> RewardResult:
    metrics = evidence_metrics(scored)
    return RewardResult(value=metrics[metric], metrics=metrics)


RECALL = Reward(
    summary="the share of the needed documents that were selected",
    score=partial(_score, metric="evidence_recall"),
    checks_answer=False,
    needs_evidence=True,
)
F2 = Reward(
    summary="F2 of the selected documents: recall, and a little precision",
    score=partial(_score, metric="evidence_f2"),
    checks_answer=False,
    needs_evidence=True,
)
