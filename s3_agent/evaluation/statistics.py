"""Paired comparison of two systems on the same questions, each answer right or wrong."""

from collections.abc import Mapping
from math import sqrt

from pydantic import BaseModel


class PairedComparison(BaseModel):
    """How two systems differ on `n` questions.

    `p_value` is the two-sided exact McNemar test, `interval` the 95 % interval of the gain (Newcombe 1998, method 10).
    """

    n: int
    before: float
    after: float
    gain: float
    gained: int
    lost: int
    p_value: float
    interval: tuple[float, float]


def compare_paired(before: Mapping[str, float], after: Mapping[str, float]) -> PairedComparison:
    """Compare 0/1 scores by question id. Raises ValueError when the questions are not the same or not binary."""
    from scipy.stats import binomtest

    if before.keys() != after.keys() or not before:
        different = sorted(before.keys() ^ after.keys())[:3]
        raise ValueError(f"a paired test needs the same questions on both sides; not in both: {different}")
    if not {*before.values(), *after.values()} <= {0.0, 1.0}:
        raise ValueError("the exact McNemar test compares scores of 0 and 1")
    gained = sum(after[key] > before[key] for key in before)
    lost = sum(after[key] < before[key] for key in before)
    return PairedComparison(
        n=len(before),
        before=sum(before.values()) / len(before),
        after=sum(after.values()) / len(after),
        gain=(gained - lost) / len(before),
        gained=gained,
        lost=lost,
        p_value=float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0,
        interval=_gain_interval(
            kept=sum(before[key] == after[key] == 1.0 for key in before), gained=gained, lost=lost, n=len(before)
        ),
    )


def _gain_interval(*, kept: int, gained: int, lost: int, n: int) -> tuple[float, float]:
    """Wilson intervals of both shares, joined by the correlation of the two answers (with continuity correction)."""
    from scipy.stats import binomtest

    neither = n - kept - gained - lost
    margins = (kept + gained) * (lost + neither) * (kept + lost) * (gained + neither)
    covariance = kept * neither - gained * lost
    if covariance > 0:
        covariance = max(covariance - n / 2, 0.0)
    correlation = covariance / sqrt(margins) if margins else 0.0
    after, before = (binomtest(right, n).proportion_ci(method="wilson") for right in (kept + gained, kept + lost))
    share_after, share_before, gain = (kept + gained) / n, (kept + lost) / n, (gained - lost) / n

    def reach(one: float, other: float) -> float:
        return sqrt(max(one**2 - 2 * correlation * one * other + other**2, 0.0))

    low = gain - reach(share_after - float(after.low), float(before.high) - share_before)
    high = gain + reach(float(after.high) - share_after, share_before - float(before.low))
    return low, high
