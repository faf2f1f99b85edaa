"""Joins the samples of an agent on one question: means, pass@k, and the vote of the majority.

The samples of a question are not independent of each other, so everything here is one number for each question, and
intervals and tests are over questions.
"""

from collections import Counter
from collections.abc import Sequence
from math import comb

from s3_agent.rewards.answer_match import normalize_answer

SHORT_WORDS = 10
"""An answer of more words is a text, of which no two samples are equal; it has no vote."""


def pass_at(k: int, *, n: int, correct: int) -> float:
    """The chance that at least one of `k` samples is correct, drawn without replacement from `n`, of which `correct`
    are: an unbiased estimate (Chen et al. 2021, arXiv 2107.03374).
    """
    if not 0 <= correct <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {k} samples; {correct} of {n} are correct")
    return 1.0 - comb(n - correct, k) / comb(n, k)


def ks_of(samples: int) -> list[int]:
    """The k of pass@k for so many samples: 2, 4, 8, … and their number. pass@1 is the mean."""
    powers = [1 << exponent for exponent in range(1, samples.bit_length()) if 1 << exponent < samples]
    return [*powers, samples]


TOO_LONG = "…"
"""The vote of an answer that has none; no normalised answer is equal to it."""


def vote_of(answer: str) -> str:
    """The form in which an answer is counted: normalised, or TOO_LONG."""
    normalised = normalize_answer(answer)
    return normalised if len(normalised.split()) <= SHORT_WORDS else TOO_LONG


def majority(votes: Sequence[str | None], scores: Sequence[float]) -> float | None:
    """The score of the most frequent answer, of equally frequent ones the first; None if an answer is too long.

    Samples without an answer (None) have no influence; 0.0 if none has one.
    """
    if TOO_LONG in votes:
        return None
    counted = Counter(vote for vote in votes if vote)
    if not counted:
        return 0.0
    [(winner, _)] = counted.most_common(1)
    return scores[votes.index(winner)]


def joint_values(votes: Sequence[str | None], scores: Sequence[float]) -> dict[str, float]:
    """avg@n, pass@k and majority@n of the n samples of one question, whose scores are 0 or 1."""
    n, correct = len(scores), sum(score > 0.5 for score in scores)
    values = {f"avg@{n}": sum(scores) / n} | {f"pass@{k}": pass_at(k, n=n, correct=correct) for k in ks_of(n)}
    voted = majority(votes, scores)
    return values if voted is None else {**values, f"majority@{n}": voted}
