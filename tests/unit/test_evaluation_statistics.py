"""The paired test against cases worked by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3_agent.evaluation.statistics import compare_paired


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
