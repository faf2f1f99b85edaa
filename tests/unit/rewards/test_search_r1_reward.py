"""Search-R1's rewards: exact match on the response alone, and credit for form (docs/protocol.md)."""

import re
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3_agent.rewards.search_r1 import exact_match, final_answer, format_reward, own_answer, well_formed
from s3_agent.types import Task

GOLDS = ["Krone", "the crown"]
THINK, FOUND = "<think>hm</think>", "\n\n<information>Doc 1(Title: x) It is the krone.</information>\n\n"
SEARCH = "<search>x</search>"
RIGHT, WRONG = "<answer> krone. </answer>", "<answer>euro</answer>"


@pytest.mark.parametrize(
    ("response", "matched"),
    [
        (RIGHT, True),
        (WRONG, False),
        (WRONG + RIGHT, True),
        (RIGHT + WRONG, False),
        ("<answer>The  Crown!</answer>", True),
        ("krone", False),
        ("<answer>krone", False),
        ("<answer></answer>", False),
        ("<answer>the krone of Norway</answer>", False),
        ("", False),
    ],
)
def test_exact_match_of_the_last_answer(response: str, matched: bool) -> None:
    assert exact_match(response, GOLDS) is matched


def test_an_empty_gold_never_matches() -> None:
    assert not exact_match("<answer>the</answer>", [" ", ""])


@pytest.mark.parametrize(
    ("response", "formed"),
    [
        (THINK + RIGHT, True),
        (f"\n{THINK}\n{RIGHT}\n", True),
        (THINK + SEARCH + FOUND + THINK + RIGHT, True),
        ((THINK + SEARCH + FOUND) * 3 + THINK + WRONG, True),
        (RIGHT, False),
        (THINK, False),
        (SEARCH + FOUND + THINK + RIGHT, False),
        (THINK + SEARCH + THINK + RIGHT, False),
        (THINK + SEARCH + FOUND + RIGHT, False),
        (THINK + THINK + RIGHT, False),
        (THINK + "so" + RIGHT, False),
        (THINK + RIGHT + "done", False),
        (THINK + RIGHT + RIGHT, False),
        ("Well, " + THINK + RIGHT, False),
        (THINK + RIGHT + "</answer>", False),
        ("<think>a <search>b</search></think>" + RIGHT, False),
        ("", False),
    ],
)
def test_form(response: str, formed: bool) -> None:
    assert well_formed(response) is formed


@pytest.mark.parametrize(
    ("response", "score"),
    [
        (THINK + RIGHT, 1.0),
        (RIGHT, 0.8),
        (THINK + WRONG, 0.2),
        (THINK + SEARCH + FOUND + THINK + WRONG, 0.2),
        (WRONG, 0.1),
        (THINK, 0.0),
        ("", 0.0),
    ],
)
def test_format_reward_table(response: str, score: float) -> None:
    assert format_reward(response, GOLDS) == pytest.approx(score)


def test_format_reward_weights_are_arguments() -> None:
    weights: dict[str, Any] = {"structure": 0.3, "final": 0.05, "retrieval": 0.15}
    found = THINK + SEARCH + FOUND + THINK + WRONG
    assert format_reward(found, GOLDS, **weights) == pytest.approx(0.45)
    assert format_reward(found, ["the", "dollar"], **weights) == pytest.approx(0.3)
    assert format_reward(RIGHT, GOLDS, **weights) == pytest.approx(0.7)
    assert format_reward(WRONG, GOLDS, **weights) == pytest.approx(0.05)


TAGS = [f"<{slash}{name}>" for name in ("think", "search", "information", "answer") for slash in ("", "/")]
pieces = st.lists(st.sampled_from([*TAGS, "x", " ", "\n", "<think", "krone"]), max_size=16).map("".join)


@given(pieces)
def test_scores_are_among_the_five_and_agree_with_match_and_form(response: str) -> None:
    score = format_reward(response, GOLDS)
    assert score in (0.0, 0.1, 0.2, 0.8, 1.0)
    assert (score >= 0.8) == exact_match(response, GOLDS)
    assert (final_answer(response) is not None) == bool(re.search(r"<answer>(.*?)</answer>", response, re.DOTALL))
    if well_formed(response):
        assert all(
            response.count(f"<{name}>") == response.count(f"</{name}>") for name in ("think", "search", "answer")
        )


FORM = re.compile(r"\s*T\s*(SI\s*T\s*)*A\s*")


@pytest.mark.parametrize("length", range(1, 8))
def test_the_states_are_those_of_the_grammar(length: int) -> None:
    blocks = {"T": THINK, "S": SEARCH, "I": "<information>i</information>", "A": WRONG}
    for kinds in product(blocks, repeat=length):
        response = "".join(blocks[kind] for kind in kinds)
        assert well_formed(response) is bool(FORM.fullmatch("".join(kinds)))


@pytest.mark.timeout(20)
@pytest.mark.parametrize("unit", [*TAGS, "<think></think>", "x", " "])
def test_long_responses_are_scored_in_linear_time(unit: str) -> None:
    assert format_reward(unit * 100_000, GOLDS) in (0.0, 0.1)


def test_own_answer_logs_match_and_form() -> None:
    task = Task(id="t", question="q", golden_answers=("krone",))
    result = own_answer(task, RIGHT, mode="format")
    assert result.value == pytest.approx(0.8)
    assert result.metrics == {"accuracy": 1.0, "exact_match": 1.0, "format": 0.0}
    assert own_answer(task, RIGHT, mode="exact_match").value == 1.0


def test_only_the_responses_are_read_for_an_answer() -> None:
    hint = "put it between <answer> and </answer>"
    assert format_reward(hint, ["and"]) == pytest.approx(0.8), "a text of unknown parts is the policy's"
    assert format_reward("x" + hint + "y", ["and"], responses=["x", "y"]) == 0.0
    assert format_reward(WRONG + hint, ["and"], responses=[WRONG]) == pytest.approx(0.1)
    assert final_answer("<answer>gar", "bage</answer>") is None
    assert final_answer(RIGHT, WRONG, "no") == "euro"
