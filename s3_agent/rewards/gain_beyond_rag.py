"""s3's reward: how much better the generator answers with the selected passages than with naive RAG.

Under GRPO the naive-RAG score is constant inside a group and cancels, so the three modes train alike; the training-set
filter carries the idea. The modes differ in what is logged, and under estimators without a group baseline
(docs/originals.md#c1).
"""

from typing import Literal

from s3_agent.types import RewardResult, Task

RewardMode = Literal["accuracy", "gbr", "gbr+accuracy"]


def gain_beyond_rag(task: Task, accuracy: float, *, mode: RewardMode = "accuracy") -> RewardResult:
    """The reward of an answer of this accuracy (0 or 1): `gbr` -1 to 1, `gbr+accuracy` -1 to 2.

    `gbr` modes need `task.rag_score`; a ValueError says so when it is unknown.
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
