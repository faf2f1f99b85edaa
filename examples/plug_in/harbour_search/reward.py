"""The reward `brief`: 1 for a correct answer, and a thousandth less for each token that the policy wrote."""

from s3_agent.rewards.registry import Reward, Scored
from s3_agent.types import RewardResult

COST = 0.001


def score(scored: Scored) -> RewardResult:
    written = sum(turn.response_tokens for turn in scored.episode.turns)
    return RewardResult(value=(scored.accuracy or 0.0) - COST * written, metrics={"written_tokens": written})


REWARD = Reward(summary="accuracy, and a thousandth less for each token of the policy", score=score)
