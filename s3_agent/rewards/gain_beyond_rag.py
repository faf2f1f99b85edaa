"""s3's reward: how much better the generator answers with the selected passages than with naive RAG.

With GRPO, all rollouts of a group have the same naive-RAG score, so it cancels, and the three modes train in the same
way; naive RAG matters only in the filter of the training set. The modes differ in what is logged, and with estimators
that do not compare the rollouts of a group (docs/originals.md#c1).
"""

from functools import partial
from typing import Literal

from s3_agent.rewards.registry import Reward, Scored
from s3_agent.types import RewardResult, Task

RewardMode = Literal["accuracy", "gbr", "gbr+accuracy"]


def gain_beyond_rag(task: Task, accuracy: float, *, mode: RewardMode = "accuracy") -> RewardResult:
    """The reward of an answer of this accuracy (0 or 1): `gbr` -1 to 1, `gbr+accuracy` -1 to 2.

    The `gbr` modes need `task.rag_score`. Raises ValueError when it is unknown.
    """
    metrics = {"accuracy": accuracy}
    if task.rag_score is not None:
        metrics["gbr"] = accuracy - task.rag_score
    elif mode != "accuracy":
        raise ValueError(f"reward mode {mode} needs the naive-RAG score of task {task.id}: build the RAG cache")
    gain = metrics.get("gbr", 0.0)
    return RewardResult(
        value={"accuracy": accuracy, "gbr": gain, "gbr+accuracy": gain + accuracy}[mode], metrics=metrics
    )


def _score(scored: Scored, *, mode: RewardMode) -> RewardResult:
    return gain_beyond_rag(scored.task, scored.accuracy or 0.0, mode=mode)


ACCURACY = Reward(summary="1 for a correct answer, else 0", score=partial(_score, mode="accuracy"))
GAIN = Reward(
    summary="accuracy minus that of naive RAG: -1 to 1", score=partial(_score, mode="gbr"), needs_rag_score=True
)
GAIN_AND_ACCURACY = Reward(
    summary="gain beyond naive RAG, plus accuracy: -1 to 2",
    score=partial(_score, mode="gbr+accuracy"),
    needs_rag_score=True,
)
