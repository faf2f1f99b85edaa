"""Paired comparison of two systems on the same questions, each answer right or wrong."""

from collections.abc import Mapping

from pydantic import BaseModel


class PairedComparison(BaseModel):
    """How two systems differ on `n` questions. `p_value` is the two-sided exact McNemar test."""

    n: int
    before: float
    after: float
    gain: float
    gained: int
    lost: int
    p_value: float


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
    )
