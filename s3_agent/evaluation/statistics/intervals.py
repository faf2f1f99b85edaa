"""Means with bootstrap intervals, tests of paired differences (by scipy), and Holm's correction for several tests."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import fsum
from typing import Any

from pydantic import BaseModel, ConfigDict

from s3_agent.evaluation.records import SCORES
from s3_agent.evaluation.statistics.tests import compare_paired, exact, signed_rank_p

CONFIDENCE = 0.95
RESAMPLES = 4999
_BATCH = 128
_BATCH_NUMBERS = 1 << 23  # drawn at a time: 64 MiB, also for 100,000 questions


class Estimate(BaseModel):
    """A mean over `n` questions and its 95 % interval."""

    model_config = ConfigDict(frozen=True)

    mean: float
    low: float
    high: float
    n: int


class Difference(BaseModel):
    """The difference of two agents on the `n` questions that both have: `gain` is second minus first.

    `test` is `mcnemar` (exact, for scores of 0 and 1) or `wilcoxon` (signed rank); `p_holm` is corrected for all pairs
    of agents that were compared by this measure.
    """

    model_config = ConfigDict(frozen=True)

    measure: str
    first: str
    second: str
    n: int
    first_mean: float
    second_mean: float
    gain: float
    low: float
    high: float
    test: str
    p_value: float
    p_holm: float = 1.0


def _bootstrap(samples: Sequence[Any], statistic: Any, *, seed: int) -> tuple[Any, Any]:
    import numpy as np
    from scipy.stats import bootstrap

    # scipy refuses a sample of one question; such a sample, like one of equal values, has no spread.
    interval = bootstrap(
        tuple(np.repeat(sample, 2, axis=-1) if sample.shape[-1] == 1 else sample for sample in samples),
        statistic,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=True,
        axis=-1,
        batch=max(1, min(_BATCH, _BATCH_NUMBERS // sum(sample.size for sample in samples))),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return interval.low, interval.high


def estimate_means(samples: Sequence[Mapping[str, Sequence[float]]], *, seed: int = 0) -> dict[str, Estimate]:
    """The mean of each measure: of the values of one sample, or of the means of several (the macro average).

    `samples` holds values by measure, in the order of the questions; all measures of a sample have equally many.
    Intervals are percentile bootstrap intervals over questions, drawn inside each sample. If all values of a share are
    equal, resampling shows no spread; for one sample Wilson's interval is used then.
    """
    import numpy as np
    from scipy.stats import binomtest

    measures = list(samples[0])
    values = [np.array([sample[measure] for measure in measures], dtype=float) for sample in samples]

    def macro(*drawn: Any, axis: int = -1) -> Any:
        return sum(one.mean(axis=axis) for one in drawn) / len(drawn)

    means, n = macro(*values), sum(sample.shape[1] for sample in values)
    lows, highs = _bootstrap(values, macro, seed=seed)
    found = {}
    for row, measure in enumerate(measures):
        low, high = float(lows[row]), float(highs[row])
        if measure in SCORES and len(values) == 1 and low == high and low in (0.0, 1.0):
            wilson = binomtest(int(low) * n, n).proportion_ci(CONFIDENCE, method="wilson")
            low, high = float(wilson.low), float(wilson.high)
        found[measure] = Estimate(mean=float(means[row]), low=low, high=high, n=n)
    return found


def difference_of(
    measure: str,
    first: tuple[str, Mapping[str, float | Fraction]],
    second: tuple[str, Mapping[str, float | Fraction]],
    *,
    seed: int = 0,
) -> Difference | None:
    """The difference of two agents' values by question id, on the questions of both; None if they share none.

    Values, including means over seeds, are compared as exact fractions (`statistics.exact`).
    """
    import numpy as np

    keys = sorted(first[1].keys() & second[1].keys())
    if not keys:
        return None
    one, other = ({key: exact(values[key]) for key in keys} for values in (first[1], second[1]))
    exact_gains = [other[key] - one[key] for key in keys]
    gains = [float(gain) for gain in exact_gains]
    gain = fsum(gains) / len(keys)
    if {*one.values(), *other.values()} <= {0, 1}:
        scores = [{key: float(value) for key, value in values.items()} for values in (one, other)]
        paired = compare_paired(*scores)
        (low, high), p_value, test = paired.interval, paired.p_value, "mcnemar"
    else:
        low = high = gain
        if any(exact_gains):
            sample = np.array([gains])
            (low,), (high,) = _bootstrap([sample], lambda drawn, axis: drawn.mean(axis=axis), seed=seed)
        p_value, test = signed_rank_p(exact_gains), "wilcoxon"
    means = [fsum(map(float, values.values())) / len(keys) for values in (one, other)]
    return Difference(
        measure=measure,
        first=first[0],
        second=second[0],
        n=len(keys),
        first_mean=means[0],
        second_mean=means[1],
        gain=gain,
        low=float(low),
        high=float(high),
        test=test,
        p_value=p_value,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values with Holm's correction (1979), which bounds the chance of any false positive; the order is kept."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, (len(p_values) - rank) * p_values[index])
        corrected[index] = min(1.0, largest)
    return corrected
