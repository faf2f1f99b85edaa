"""Paired tests of two systems on the same questions: McNemar's for right and wrong, and the signed-rank test.

A rank test must know which differences are equal. Floats hide that: 1 - 2/3 and 2/3 - 1/3 differ in the last bit, so a
tie would look like an order. Scores are therefore converted to rational numbers before they are compared.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from math import sqrt
from typing import Any

from pydantic import BaseModel

MOST_EXACT = 25
_LARGEST_DENOMINATOR = 1_000_000


class PairedComparison(BaseModel):
    """The difference of two systems on `n` questions.

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
    """Compare 0/1 scores by question id. Raises ValueError if the questions differ or a score is not 0 or 1."""
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


@lru_cache(maxsize=1 << 16)
def exact(score: float | Fraction) -> Fraction:
    """The fraction that a float was rounded from: the nearest one with a denominator below a million.

    Two such fractions are at least 1e-12 apart, and a float between -1000 and 1000 is closer than that to its own.
    """
    return Fraction(score).limit_denominator(_LARGEST_DENOMINATOR)


def signed_rank_p(gains: Sequence[Fraction]) -> float:
    """The two-sided p-value of Wilcoxon's signed-rank test; gains of 0 are left out, ties get mid-ranks.

    For at most `MOST_EXACT` gains it enumerates all assignments of signs. For more it uses scipy, which is exact
    without ties (up to 50 gains) and otherwise uses the normal approximation, corrected for ties. It is 1 if nothing
    differs.
    """
    import numpy as np
    from scipy.stats import wilcoxon

    gains = [gain for gain in gains if gain]
    if not gains:
        return 1.0
    if len(gains) <= MOST_EXACT:
        return _counted_p(gains)
    place = {size: number for number, size in enumerate(sorted({abs(gain) for gain in gains}), 1)}
    # Only order, ties and signs matter, and small integers keep them exactly.
    tested: Any = wilcoxon(np.array([place[abs(gain)] * (1 if gain > 0 else -1) for gain in gains], dtype=float))
    return float(tested.pvalue)


def _counted_p(gains: Sequence[Fraction]) -> float:
    """The share of all sign assignments whose rank sum is at least as extreme, on both sides."""
    sizes = sorted(abs(gain) for gain in gains)
    # Twice a mid-rank is an integer: the first rank of a size plus its last.
    twice = {size: 2 * sizes.index(size) + sizes.count(size) + 1 for size in sizes}
    ways = [1]
    for size in sizes:
        step = twice[size]
        ways = [
            (ways[total] if total < len(ways) else 0) + (ways[total - step] if total >= step else 0)
            for total in range(len(ways) + step)
        ]
    up = sum(twice[gain] for gain in gains if gain > 0)
    return min(1.0, 2 * min(sum(ways[: up + 1]), sum(ways[up:])) / sum(ways))


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
