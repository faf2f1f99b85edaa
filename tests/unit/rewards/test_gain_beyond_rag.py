"""s3's reward in its three modes (docs/originals.md#c1)."""

from statistics import fmean, stdev

import pytest

from s3_agent.rewards.gain_beyond_rag import RewardMode, gain_beyond_rag
from s3_agent.types import Task


def task(rag_score: float | None) -> Task:
    return Task(id="t", question="q", golden_answers=("krone",), rag_score=rag_score)


@pytest.mark.parametrize(
    ("mode", "accuracy", "rag_score", "value"),
    [
        ("accuracy", 1.0, 0.0, 1.0),
        ("accuracy", 0.0, 1.0, 0.0),
        ("gbr", 1.0, 0.0, 1.0),
        ("gbr", 1.0, 1.0, 0.0),
        ("gbr", 0.0, 0.0, 0.0),
        ("gbr", 0.0, 1.0, -1.0),
        ("gbr+accuracy", 1.0, 0.0, 2.0),
        ("gbr+accuracy", 1.0, 1.0, 1.0),
        ("gbr+accuracy", 0.0, 0.0, 0.0),
        ("gbr+accuracy", 0.0, 1.0, -1.0),
    ],
)
def test_values(mode: RewardMode, accuracy: float, rag_score: float, value: float) -> None:
    result = gain_beyond_rag(task(rag_score), accuracy, mode=mode)
    assert result.value == value
    assert result.metrics["gbr"] == result.metrics["accuracy"] - rag_score


def test_accuracy_needs_no_cache_and_logs_no_gain() -> None:
    result = gain_beyond_rag(task(None), 1.0)
    assert result.value == 1.0
    assert result.metrics == {"accuracy": 1.0}


@pytest.mark.parametrize("rag_score", [0.0, 1.0])
def test_the_modes_have_the_same_group_advantages(rag_score: float) -> None:
    """What is constant in a group cancels against its mean and spread."""
    group = [1.0, 0.0, 0.0, 1.0, 0.0]
    modes: list[RewardMode] = ["accuracy", "gbr", "gbr+accuracy"]
    advantages = []
    for mode in modes:
        values = [gain_beyond_rag(task(rag_score), accuracy, mode=mode).value for accuracy in group]
        advantages.append([(value - fmean(values)) / stdev(values) for value in values])
    assert advantages[0] == pytest.approx(advantages[1])
    assert advantages[0] == pytest.approx(advantages[2])


@pytest.mark.parametrize("mode", ["gbr", "gbr+accuracy"])
def test_gain_without_the_cache_is_an_error_that_says_so(mode: RewardMode) -> None:
    with pytest.raises(ValueError, match="task t: build the RAG cache"):
        gain_beyond_rag(task(None), 1.0, mode=mode)
