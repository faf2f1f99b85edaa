"""The containers of large evaluations hold what dicts would hold, in a fraction of the memory."""

import tracemalloc
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3_agent.evaluation import compact
from s3_agent.evaluation.compact import Measured, Places

_KEYS = st.text(max_size=8)


@given(st.lists(st.tuples(_KEYS, st.integers(0, 2**60), st.integers(0, 2**60))), _KEYS)
def test_places_are_those_of_a_dict(entries: list[tuple[str, int, int]], other: str) -> None:
    with mock.patch.object(compact, "_FIRST_SLOTS", 4):  # it grows
        places = Places()
        for key, at, length in entries:
            places.put(key, at, length)
    expected = {key: (at, length) for key, at, length in entries}
    assert len(places) == len(expected)
    assert {key: places.get(key) for key in expected} == expected
    assert (places.get(other) is None) == (other not in expected)


@given(st.dictionaries(st.text(max_size=6), st.integers(-(2**53), 2**53) | st.floats(allow_nan=False)), st.text())
def test_measured_numbers_are_those_of_a_dict(values: dict[str, float], other: str) -> None:
    measured = Measured(values)
    assert dict(measured) == values and list(measured) == list(values) and len(measured) == len(values)
    if other not in values:
        with pytest.raises(KeyError):
            measured[other]


def test_a_question_takes_a_fraction_of_the_memory_of_dicts() -> None:
    def bytes_each(number: int) -> float:
        tracemalloc.start()
        try:
            places = [Places() for _ in range(4)]
            for stage in places:
                for one in range(number):
                    stage.put(f"{one:032x}", one, one)
            kept = [Measured({f"measure {name}": one + 0.5 for name in range(13)}) for one in range(number)]
            assert len(kept) == len(places[0])
            return tracemalloc.get_traced_memory()[0] / number
        finally:
            tracemalloc.stop()

    assert bytes_each(5000) < 700
