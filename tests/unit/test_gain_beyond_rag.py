"""s3's reward in its three modes (spec §4.1)."""

import pytest

from s3_agent.rewards.gain_beyond_rag import RewardMode, gain_beyond_rag
from s3_agent.types import Task


def task(rag_score: float | None) -> Task:
    return Task(id="t", question="q", golden_answers=("krone",), rag_score=rag_score)


@pytest.mark.parametrize(
    ("mode", "answer", "rag_score", "value"),
    [
        ("accuracy", "the krone", 0.0, 1.0),
        ("accuracy", "euro", 1.0, 0.0),
        ("gbr", "krone", 0.0, 1.0),
        ("gbr", "krone", 1.0, 0.0),
        ("gbr", "euro", 0.0, 0.0),
        ("gbr", "euro", 1.0, -1.0),
        ("gbr+accuracy", "krone", 0.0, 2.0),
        ("gbr+accuracy", "krone", 1.0, 1.0),
        ("gbr+accuracy", "euro", 0.0, 0.0),
        ("gbr+accuracy", "euro", 1.0, -1.0),
    ],
)
def test_values(mode: RewardMode, answer: str, rag_score: float, value: float) -> None:
    result = gain_beyond_rag(task(rag_score), answer, mode=mode)
    assert result.value == value
    assert result.metrics["gbr"] == result.metrics["accuracy"] - rag_score


def test_accuracy_needs_no_cache_and_logs_no_gain() -> None:
    result = gain_beyond_rag(task(None), "krone")
    assert result.value == 1.0
    assert result.metrics == {"accuracy": 1.0, "exact_match": 1.0}


@pytest.mark.parametrize("mode", ["gbr", "gbr+accuracy"])
def test_gain_without_the_cache_is_an_error_that_says_so(mode: RewardMode) -> None:
    with pytest.raises(ValueError, match="task t: build the RAG cache"):
        gain_beyond_rag(task(None), "krone", mode=mode)
