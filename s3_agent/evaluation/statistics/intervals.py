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
OF_SAMPLES = ("avg@", "pass@", "majority@")
"""The beginnings of the names of measures over several samples of a question; all are shares."""
_BATCH_NUMBERS = 1 << 21  # drawn at a time: some tens of MB, also for 100,000 questions


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


def _bootstrap(samples: Sequence[Any], *, seed: int) -> Any:
    """The interval of the mean over the samples' means, for each row (measure) of arrays of (measures, questions).

    All measures share the drawn questions: a resample's means are the product of the values and of how often each
    question was drawn. With fifty measures that takes a quarter of the time of scipy's `bootstrap`, which gathers them.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    batch = max(1, min(RESAMPLES, _BATCH_NUMBERS // sum(sample.shape[1] for sample in samples)))
    means = np.empty((RESAMPLES, samples[0].shape[0]))
    for start in range(0, RESAMPLES, batch):
        rows = min(batch, RESAMPLES - start)
        total = np.zeros((rows, means.shape[1]))
        for sample in samples:
            n = sample.shape[1]
            drawn = rng.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
            total += counts.astype(float) @ sample.T / n
        means[start : start + rows] = total / len(samples)
    tail = (1 - CONFIDENCE) / 2
    return np.quantile(means, (tail, 1 - tail), axis=0)


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

    means = np.mean([sample.mean(axis=1) for sample in values], axis=0)
    n = sum(sample.shape[1] for sample in values)
    lows, highs = _bootstrap(values, seed=seed)
    found = {}
    for row, measure in enumerate(measures):
        low, high = float(lows[row]), float(highs[row])
        if (
            (measure in SCORES or measure.startswith(OF_SAMPLES))
            and len(values) == 1
            and low == high
            and low in (0.0, 1.0)
        ):
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
            (low,), (high,) = _bootstrap([sample], seed=seed)
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
