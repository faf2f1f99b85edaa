"""The paired tests against cases worked by hand, known values, and every way to give the signs."""

from fractions import Fraction
from itertools import product
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import wilcoxon

from s3_agent.evaluation.statistics.tests import MOST_EXACT, compare_paired, exact, signed_rank_p


def pairs(
    *, kept: int = 0, gained: int = 0, lost: int = 0, neither: int = 0
) -> tuple[dict[str, float], dict[str, float]]:
    """Scores before and after with the given cells of the two-by-two table."""
    cells = [(1.0, 1.0)] * kept + [(0.0, 1.0)] * gained + [(1.0, 0.0)] * lost + [(0.0, 0.0)] * neither
    before = {f"q{number}": cell[0] for number, cell in enumerate(cells)}
    return before, {f"q{number}": cell[1] for number, cell in enumerate(cells)}


def test_by_hand() -> None:
    result = compare_paired(*pairs(kept=3, gained=5, lost=1, neither=1))
    assert (result.n, result.gained, result.lost) == (10, 5, 1)
    assert (result.before, result.after) == (0.4, 0.8)
    assert result.gain == pytest.approx(0.4)
    assert result.p_value == pytest.approx(2 * (1 + 6) / 2**6)  # two tails of Binomial(6, 1/2) at 5 or more


def test_only_discordant_pairs_count_for_p() -> None:
    few, many = (compare_paired(*pairs(gained=8, neither=n)) for n in (0, 500))
    assert few.p_value == many.p_value == pytest.approx(2 / 2**8)


def test_no_difference_is_p_one() -> None:
    result = compare_paired(*pairs(kept=4, neither=6))
    assert (result.gain, result.p_value) == (0.0, 1.0)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.integers(1, 30))
def test_swapping_sides_mirrors(kept: int, gained: int, lost: int, neither: int) -> None:
    before, after = pairs(kept=kept, gained=gained, lost=lost, neither=neither)
    there, back = compare_paired(before, after), compare_paired(after, before)
    assert there.gain == pytest.approx(-back.gain)
    assert there.p_value == pytest.approx(back.p_value)
    assert 0 < there.p_value <= 1


def test_different_questions_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"same questions.*'b'.*'c'"):
        compare_paired({"a": 1.0, "b": 0.0}, {"a": 1.0, "c": 0.0})
    with pytest.raises(ValueError, match="same questions"):
        compare_paired({}, {})


def test_graded_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="0 and 1"):
        compare_paired({"a": 0.5}, {"a": 1.0})


def test_interval_is_newcombes() -> None:
    low, high = compare_paired(*pairs(kept=36, gained=12, lost=2)).interval
    assert (round(low, 4), round(high, 4)) == (0.0569, 0.3404)  # Newcombe 1998 (Stat. Med. 17:2635), method 10


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.integers(1, 30))
def test_interval_holds_the_gain(kept: int, gained: int, lost: int, neither: int) -> None:
    result = compare_paired(*pairs(kept=kept, gained=gained, lost=lost, neither=neither))
    low, high = result.interval
    assert -1 <= low <= result.gain + 1e-9
    assert result.gain - 1e-9 <= high <= 1


def enumerated_p(gains: list[Fraction]) -> float:
    """Wilcoxon's test by the book: mid-ranks, and every way to give them signs."""
    gains = [gain for gain in gains if gain]
    if not gains:
        return 1.0
    sizes = sorted(abs(gain) for gain in gains)
    ranks = [fmean(place for place, size in enumerate(sizes, 1) if size == abs(gain)) for gain in gains]
    sums = [
        sum(rank for rank, up in zip(ranks, signs, strict=True) if up) for signs in product((0, 1), repeat=len(ranks))
    ]
    own = sum(rank for rank, gain in zip(ranks, gains, strict=True) if gain > 0)
    return min(1.0, 2 * min(sum(one <= own for one in sums), sum(one >= own for one in sums)) / len(sums))


@given(st.lists(st.integers(-3, 3), max_size=10), st.sampled_from([1, 3, 5, 7]))
def test_few_gains_are_tested_by_every_way_to_give_the_signs(counts: list[int], seeds: int) -> None:
    gains = [Fraction(count, seeds) for count in counts]
    assert signed_rank_p(gains) == pytest.approx(enumerated_p(gains))


@pytest.mark.parametrize("n", [5, 13, 14, MOST_EXACT, MOST_EXACT + 1, 40])
def test_without_ties_it_is_the_exact_distribution_of_the_tables(n: int) -> None:
    gains = [Fraction(place if place % 3 else -place) for place in range(1, n + 1)]
    tested: Any = wilcoxon([float(gain) for gain in gains], method="exact")
    assert signed_rank_p(gains) == pytest.approx(tested.pvalue)


def test_known_values() -> None:
    # Hollander and Wolfe 1973, table 3.1 (depression scores): T+ = 5 of 45; R's wilcox.test: p = 0.0391.
    before = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30]
    after = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]
    assert signed_rank_p([exact(y) - exact(x) for x, y in zip(before, after, strict=True)]) == pytest.approx(20 / 2**9)
    assert signed_rank_p([]) == signed_rank_p([Fraction()] * 5) == 1.0
    assert signed_rank_p([Fraction(1)] * 5) == pytest.approx(2 / 2**5)


@pytest.mark.parametrize("up", [(0, 1), (1, 2), (2, 3)])
@pytest.mark.parametrize("down", [(1, 0), (2, 1), (3, 2)])
def test_equal_steps_are_ties_wherever_they_begin(up: tuple[int, int], down: tuple[int, int]) -> None:
    """20 ups beside 12 downs by one third: floats of them differ in the last bit, and p was 0.0003 or 0.295."""
    steps = [up] * 20 + [down] * 12
    assert signed_rank_p([exact(b / 3) - exact(a / 3) for a, b in steps]) == pytest.approx(0.1573, abs=5e-5)


@given(st.integers(1, 1000), st.integers(0, 3000))
def test_a_float_is_the_share_that_it_was_rounded_from(whole: int, part: int) -> None:
    share = Fraction(part, whole)
    assert exact(part / whole) == exact(share) == share
    assert exact(fmean([1.0] * (part % whole) + [0.0] * (whole - part % whole))) == Fraction(part % whole, whole)


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=60))
def test_p_depends_on_counts_alone(pairs_: list[tuple[int, int]]) -> None:
    of_counts = signed_rank_p([Fraction(b - a) for a, b in pairs_])
    of_floats = signed_rank_p([exact(b / 7) - exact(a / 7) for a, b in pairs_])
    swapped = signed_rank_p([exact(a / 7) - exact(b / 7) for a, b in pairs_])
    assert of_counts == of_floats == pytest.approx(swapped)
    assert 0 < of_counts <= 1
