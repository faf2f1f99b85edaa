"""Answer checks against the behaviour of the originals (docs/originals.md#c2)."""

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3_agent.rewards import search_r1
from s3_agent.rewards.answer_match import can_match, exact_match, normalize_answer, span_match, token_f1


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Norwegian krone.", "norwegian krone"),
        ("A.B.C.", "abc"),
        ("an apple a day", "apple day"),
        ("theatre", "theatre"),
        ("don't", "dont"),
        ("a.n.", ""),
        ("«x»", "«x»"),
        ("\t\n", ""),
    ],
)
def test_normalize(text: str, normal: str) -> None:
    assert normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("prediction", "gold", "matches"),
    [
        ("It is the Norwegian krone.", "Norwegian Krone", True),
        ("krone", "Norwegian krone", False),
        ("Norwegian (new) krone", "Norwegian krone", False),
        ("this is not true", "true", True),
        ("untrue", "true", False),
        ("Beyonce sang", "Beyoncé", False),
        ("Beyonce\u0301 sang", "Beyonc\u00e9", True),
        ("calling code +47", "+47", True),
        ("year 1947", "47", False),
        ("U.S.", "US", True),
        ("東京 都", "東京", True),
        ("東京都", "東京", False),
        ("5 €", "5€", True),
        ("", "x", False),
    ],
)
def test_span_match(prediction: str, gold: str, matches: bool) -> None:
    assert span_match(prediction, [gold]) is matches


@pytest.mark.parametrize("gold", ["", " \n", "\u200b"])
@pytest.mark.parametrize("prediction", ["", "anything", "the"])
def test_an_empty_gold_never_matches(prediction: str, gold: str) -> None:
    assert not span_match(prediction, [gold])
    assert not exact_match(prediction, [gold])
    assert token_f1(prediction, [gold]) == 0.0
    assert not can_match(gold)


def test_any_gold_is_enough() -> None:
    assert span_match("it is NOK", ["krone", "the", "nok"])
    assert exact_match("The NOK!", ["krone", "nok"])
    assert not exact_match("it is NOK", ["nok"])
    assert not span_match("x", [])


def test_token_f1() -> None:
    assert token_f1("the norwegian krone", ["krone"]) == pytest.approx(2 / 3)
    assert token_f1("krone krone", ["krone"]) == pytest.approx(2 / 3)
    assert token_f1("krone", ["euro", "a krone"]) == 1.0


@given(st.text(), st.lists(st.text(), max_size=3))
def test_exact_matches_are_full_f1_and_scores_are_bounded(prediction: str, golds: list[str]) -> None:
    assert 0.0 <= token_f1(prediction, golds) <= 1.0
    if exact_match(prediction, golds):
        assert token_f1(prediction, golds) == 1.0


@given(st.text(), st.text(), st.text())
def test_a_gold_between_spaces_is_found(before: str, gold: str, after: str) -> None:
    if any(character.isalnum() for character in normalize_answer(gold)):
        assert span_match(f"{before} {gold} {after}", [gold])


@pytest.mark.timeout(20)
def test_long_predictions_are_read_in_linear_time() -> None:
    assert not span_match("a" * 200_000 + "\u0301" * 200_000, ["b"])
    assert not span_match("x " * 100_000, ["x x y"])


@pytest.mark.parametrize("gold", ["A", "a", "A.", "(A)", "An", "The", "The The", "The, The", "+", "%", "...", "?!"])
def test_a_gold_that_normalises_to_nothing_is_matched_by_itself(gold: str) -> None:
    assert normalize_answer(gold) == "" and can_match(gold)
    for prediction in (gold, f" {gold.lower()} ", gold.upper()):
        assert exact_match(prediction, [gold]) and span_match(prediction, [gold])
        assert token_f1(prediction, [gold]) == 1.0
        assert search_r1.format_reward(f"<think>x</think><answer>{prediction}</answer>", [gold]) == 1.0
    for prediction in ("B", "", "anything"):
        assert not exact_match(prediction, [gold]) and not span_match(prediction, [gold])
        assert token_f1(prediction, [gold]) == 0.0


@pytest.mark.parametrize("key", "ABCD")
def test_every_key_of_a_multiple_choice_question_can_be_right(key: str) -> None:
    for prediction in (key, f"{key}.", f"({key})", f"The answer is {key}.", f"{key}: Orvale", f"Option {key} is right"):
        assert span_match(prediction, [key]), prediction
    assert exact_match(f"{key}.", [key]) and token_f1(f"The answer is {key}", [key]) > 0


@pytest.mark.parametrize(
    ("prediction", "gold"),
    [
        ("It is a dog", "A"),
        ("A dog barks", "A"),
        ("the end of an era", "An"),
        ("I saw The Rolling Stones", "The The"),
        ("calling code +47", "+"),
        ("It is so.", "."),
    ],
)
def test_an_article_in_a_sentence_is_no_gold(prediction: str, gold: str) -> None:
    assert not span_match(prediction, [gold]) and not exact_match(prediction, [gold])


@pytest.mark.parametrize(("key", "other"), [("A", "B"), ("B", "A")])
@pytest.mark.parametrize("form", ["{}: {}", "({}) {}", "{}) {}"])
def test_an_option_keeps_its_key_whichever_it_is(key: str, other: str, form: str) -> None:
    gold = form.format(key, "Quen")
    for right in (gold, f"{key}: Quen", f"{key} Quen", f"({key}) the Quen"):
        assert exact_match(right, [gold]) and span_match(f"It is {right}!", [gold]), right
        assert token_f1(right, [gold]) == 1.0
    for wrong in ("Quen", f"{other}: Quen", "a nice Quen"):
        assert not exact_match(wrong, [gold]) and not span_match(wrong, [gold]), wrong
    assert exact_match("A: a dog", ["A: a dog"]) and exact_match("A: dog", ["A: a dog"])


def published_scores(prediction: str, gold: str) -> tuple[bool, bool, float]:
    """Exact match, span (on texts of ASCII words) and F1 as they are published."""
    answer, other = normalize_answer(prediction), normalize_answer(gold)
    span = re.search(rf"(?<!\S){re.escape(other)}(?!\S)", answer) is not None
    words, gold_words = Counter(answer.split()), Counter(other.split())
    common = (words & gold_words).total()
    return answer == other, span, 2 * common / (words.total() + gold_words.total()) if common else 0.0


WORDS = st.lists(st.sampled_from(["a", "an", "the", "A", "B", "b:", "dog", "+", "Oslo", "(c)", "47"]), max_size=6)


@given(WORDS.map(" ".join), WORDS.map(" ".join))
def test_a_gold_that_does_not_normalise_to_nothing_is_scored_as_published(prediction: str, gold: str) -> None:
    if normalize_answer(gold):
        scores = exact_match(prediction, [gold]), span_match(prediction, [gold]), token_f1(prediction, [gold])
        assert scores == published_scores(prediction, gold)


@given(st.text(), st.text())
def test_any_text_is_scored_as_published_where_its_gold_is(prediction: str, gold: str) -> None:
    if normalize_answer(gold) and not re.match(r"\s*\(?a[:)]\s", gold, re.IGNORECASE):
        exact, _, f1 = published_scores(prediction, gold)
        assert (exact_match(prediction, [gold]), token_f1(prediction, [gold])) == (exact, f1)
