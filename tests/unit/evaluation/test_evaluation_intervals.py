"""Intervals and tests against independent computations; planted differences are found, null differences are not."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy import stats

from s3_agent.evaluation.statistics import intervals
from s3_agent.evaluation.statistics.intervals import Difference, difference_of, estimate_means, holm

SIMULATIONS = 500
ALPHA = 0.05


def _p(tested: Any) -> float:
    return tested.pvalue


def by_question(values: np.ndarray) -> dict[str, float]:
    return {f"q{number:04}": float(value) for number, value in enumerate(values)}


def difference(first: np.ndarray, second: np.ndarray, measure: str = "gen_acc") -> Difference:
    found = difference_of(measure, ("a", by_question(first)), ("b", by_question(second)))
    assert found is not None
    return found


def test_means_and_intervals_agree_with_an_independent_bootstrap() -> None:
    rng = np.random.default_rng(1)
    sample = {"gen_acc": (rng.random(150) < 0.4).astype(float), "f1": rng.beta(0.5, 1.5, 150)}
    found = estimate_means([{name: list(values) for name, values in sample.items()}])
    for name, values in sample.items():
        drawn = rng.choice(values, (20000, len(values))).mean(axis=1)
        low, high = np.quantile(drawn, [0.025, 0.975])
        assert (found[name].mean, found[name].n) == (pytest.approx(values.mean()), 150)
        assert (found[name].low, found[name].high) == (pytest.approx(low, abs=0.01), pytest.approx(high, abs=0.01))


def test_intervals_are_scipys_for_the_same_draws_whatever_is_drawn_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = {name: list(np.random.default_rng(number).random(37)) for number, name in enumerate(("f1", "turns"))}
    found = estimate_means([sample])
    for name, values in sample.items():
        interval = stats.bootstrap(
            (values,), np.mean, n_resamples=4999, method="percentile", rng=np.random.default_rng(0)
        ).confidence_interval
        assert (found[name].low, found[name].high) == pytest.approx((interval.low, interval.high), abs=1e-12)
    monkeypatch.setattr(intervals, "_BATCH_NUMBERS", 100)
    for name, again in estimate_means([sample]).items():
        assert (again.low, again.high) == pytest.approx((found[name].low, found[name].high), abs=1e-12)


def test_the_macro_average_weighs_sources_alike_and_draws_inside_each() -> None:
    rng = np.random.default_rng(2)
    large, small = rng.random(400) < 0.8, rng.random(40) < 0.2
    [found] = estimate_means([{"gen_acc": list(map(float, one))} for one in (large, small)]).values()
    drawn = sum(rng.choice(one, (20000, len(one))).mean(axis=1) for one in (large, small)) / 2
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found.mean == pytest.approx((large.mean() + small.mean()) / 2)
    assert (found.low, found.high) == (pytest.approx(low, abs=0.01), pytest.approx(high, abs=0.01))


def test_a_source_of_one_question_adds_no_spread() -> None:
    [found] = estimate_means([{"f1": [0.25]}, {"f1": [0.5, 1.0, 0.0]}]).values()
    assert (found.mean, found.n) == (pytest.approx(0.375), 4)
    assert found.low >= 0.125 and found.high <= 0.625


def test_shares_without_spread_have_wilsons_interval_and_counts_none() -> None:
    n, z = 50, stats.norm.ppf(0.975)
    found = estimate_means([{"gen_acc": [0.0] * n, "answer_recall": [1.0] * n, "turns": [1.0] * n}])
    assert (found["gen_acc"].low, found["gen_acc"].high) == (0.0, pytest.approx(z**2 / (n + z**2)))
    assert (found["answer_recall"].low, found["answer_recall"].high) == (pytest.approx(n / (n + z**2)), 1.0)
    assert (found["turns"].low, found["turns"].high) == (1.0, 1.0)


def test_intervals_hold_the_true_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    samples = {f"sample {number}": list((rng.random(100) < 0.35).astype(float)) for number in range(SIMULATIONS)}
    held = sum(found.low <= 0.35 <= found.high for found in estimate_means([samples]).values())
    assert 0.92 <= held / SIMULATIONS <= 0.98


def test_binary_scores_are_compared_by_the_exact_mcnemar_test() -> None:
    rng = np.random.default_rng(4)
    first = (rng.random(120) < 0.4).astype(float)
    second = np.where(rng.random(120) < 0.3, 1.0, first)
    found = difference(first, second)
    gained, lost = int((second > first).sum()), int((second < first).sum())
    tail = stats.binom.cdf(min(gained, lost), gained + lost, 0.5)
    assert (found.test, found.n, found.gain) == ("mcnemar", 120, pytest.approx(second.mean() - first.mean()))
    assert found.p_value == pytest.approx(min(1.0, 2 * tail))
    swapped = stats.permutation_test(
        (first, second), lambda x, y, axis: (y - x).mean(axis=axis), permutation_type="samples", vectorized=True
    )
    assert found.p_value == pytest.approx(_p(swapped), abs=0.01)


def test_graded_scores_are_compared_by_the_signed_rank_test() -> None:
    rng = np.random.default_rng(5)
    first = rng.random(80)
    second = np.clip(first + rng.normal(0.05, 0.2, 80), 0, 1)
    found = difference(first, second, "f1")
    assert (found.test, found.p_value) == ("wilcoxon", pytest.approx(_p(stats.wilcoxon(second, first))))
    interval = stats.bootstrap((second - first,), np.mean, method="percentile", rng=rng).confidence_interval
    assert (found.low, found.high) == (pytest.approx(interval.low, abs=0.01), pytest.approx(interval.high, abs=0.01))
    same = difference(first, first, "f1")
    assert (same.gain, same.low, same.high, same.p_value) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("down", [(1, 0), (2, 1), (3, 2)])
def test_means_over_seeds_are_compared_as_the_counts_that_they_are(down: tuple[int, int]) -> None:
    steps = np.array([(1, 2)] * 20 + [down] * 12) / 3
    found = difference(steps[:, 0], steps[:, 1])
    assert (found.test, found.p_value) == ("wilcoxon", pytest.approx(0.1573, abs=5e-5))
    even = difference(steps[:, 0], steps[::-1, 0])
    assert (even.gain, even.first_mean) == (0.0, even.second_mean)


def test_only_questions_of_both_are_compared() -> None:
    found = difference_of("gen_acc", ("a", {"x": 1.0, "y": 0.0}), ("b", {"y": 1.0, "z": 0.0}))
    assert found is not None
    assert (found.n, found.first_mean, found.second_mean) == (1, 0.0, 1.0)
    assert difference_of("gen_acc", ("a", {"x": 1.0}), ("b", {})) is None


def test_holms_correction() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # R: p.adjust(p, "holm")
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def paired(rng: np.random.Generator, agents: int, *, n: int = 120, planted: float = 0.0) -> list[np.ndarray]:
    """Answers of agents to the same questions, some of which are harder; the last agent is better by `planted`."""
    hardness = rng.beta(1, 1.5, n)
    return [
        (rng.random(n) < hardness * (1 - better) + better).astype(float) for better in [0.0] * (agents - 1) + [planted]
    ]


def _mcnemar(rng: np.random.Generator) -> float:
    one, other = paired(rng, 2)
    return difference(one, other).p_value


@pytest.mark.parametrize(
    "p_value",
    [
        pytest.param(_mcnemar, id="mcnemar"),
        pytest.param(
            lambda rng: difference(rng.beta(0.5, 1.5, 60), rng.beta(0.5, 1.5, 60), "f1").p_value, id="wilcoxon"
        ),
        pytest.param(
            lambda rng: min(holm([difference(one, other).p_value for one, other in pairwise(paired(rng, 5))])),
            id="any of four, by Holm",
        ),
    ],
)
def test_a_null_difference_is_not_found(p_value: Callable[[np.random.Generator], float]) -> None:
    rng = np.random.default_rng(6)
    false = sum(p_value(rng) < ALPHA for _ in range(SIMULATIONS))
    assert false / SIMULATIONS <= 0.06


def test_a_planted_difference_is_found_and_no_other() -> None:
    rng = np.random.default_rng(7)
    found, false = 0, 0
    for _ in range(100):
        rag, ircot, s3 = paired(rng, 3, n=240, planted=0.35)
        pairs = ((rag, ircot), (rag, s3), (ircot, s3))
        null, *planted = holm([difference(one, other).p_value for one, other in pairs])
        false += null < ALPHA
        found += max(planted) < ALPHA
    assert found >= 95 and false <= 10
