"""What a reward is (a pure function from an episode and its answer to a number), and the table of all rewards."""

from collections.abc import Callable
from dataclasses import dataclass

from retrieval_server.registry import Registry
from s3_agent.errors import ConfigError
from s3_agent.types import Episode, RewardResult, Task


@dataclass(frozen=True, slots=True)
class Scored:
    """What a reward reads. `answer` is None when none was given.

    `accuracy` is 1.0 or 0.0, by the rule of the recipe's judge; None for a reward that checks no answer.
    """

    task: Task
    episode: Episode
    answer: str | None
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class Reward:
    """One reward. `score` does no I/O and raises nothing for a task that has what the reward needs.

    A reward that takes a tenth off for each search, as a package of your own would register it:

        def _score(scored: Scored) -> RewardResult:
            value = scored.accuracy - 0.1 * scored.episode.searches
            return RewardResult(value=value)

        REWARD = Reward(summary="accuracy, and a tenth less for each search", score=_score)
    """

    summary: str
    score: Callable[[Scored], RewardResult]
    checks_answer: bool = True
    """Whether an answer is asked for and checked. If not, the evidence is scored (`needs_evidence`), or only the
    policy's own text: then only methods that list the reward in their `own_rewards` can use it, and its `metrics` hold
    `accuracy`.
    """
    needs_rag_score: bool = False
    """Whether it needs the score of naive RAG for the same question."""
    needs_evidence: bool = False
    """Whether it needs the documents that the answer needs (`Task.evidence`)."""


_HERE = "s3_agent.rewards"
REWARDS: Registry[Reward] = Registry(
    "reward",
    group="s3_agent.rewards",
    own={
        "accuracy": f"{_HERE}.gain_beyond_rag:ACCURACY",
        "gbr": f"{_HERE}.gain_beyond_rag:GAIN",
        "gbr+accuracy": f"{_HERE}.gain_beyond_rag:GAIN_AND_ACCURACY",
        "exact_match": f"{_HERE}.search_r1:EXACT_MATCH",
        "format": f"{_HERE}.search_r1:FORMAT",
        "evidence_recall": f"{_HERE}.evidence:RECALL",
        "evidence_f2": f"{_HERE}.evidence:F2",
    },
    kind=Reward,
    error=ConfigError,
)
