"""BrowseComp-Plus's run files and scores: its script's own values on a made-up set, and what they should be."""

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3_agent.clients.judge_forms import FORMS
from s3_agent.data.published.canary import decrypted
from s3_agent.evaluation.browsecomp_plus import (
    calibration_error,
    citations_in,
    outcome_of,
    published_summary,
    run_file,
    run_folder,
    scores,
)
from s3_agent.evaluation.records import EvaluatedTask, Failure
from s3_agent.types import Action, ActionKind, Episode, Evidence, Passage, StopReason, Task, Turn
from tests.published_files import KEY, SECRET


def judge_reply(number: int) -> str:
    """What a judge writes about the answer to a question, in the forms that occur."""
    verdict, sure = "yes" if number % 3 == 0 else "no", (number * 37 % 997) / 10
    if number % 10 == 0:
        return f"**extracted_final_answer:** x\n\n**correct:** {verdict}\n\n**confidence:** {sure}%"
    if number % 10 == 1:
        return f"**correct**: {verdict.upper()}\n**confidence**: {sure}"
    if number % 10 == 2:
        return "I can not say."
    if number % 10 == 3:
        return f"reasoning: it is not correct: no.\n**correct:** {verdict}"
    return f"extracted_final_answer: x\ncorrect: {verdict}\nconfidence: {sure}%"


def passages(*numbers: int) -> tuple[Passage, ...]:
    return tuple(Passage(id=str(number), title=f"Page {number}", text=f"Text {number}") for number in numbers)


def made_up(number: int, *, protected: str | None = None) -> EvaluatedTask:
    """The result of one made-up question, which needs the pages 3n, 3n + 1 and 3n + 2."""
    first = 3 * number
    task = Task(
        id=str(number),
        question=f"Which {SECRET} is it, number {number}?",
        golden_answers=(f"kingfisher {number}",),
        evidence=tuple(Evidence(id=str(first + each), answer=each == 0) for each in range(3)),
        protected=protected,
    )
    if number % 29 == 28:
        failure = Failure(boundary="policy", message=f"400: {task.question}")
        return EvaluatedTask(agent="s3", task=task, state="failed", failure=failure)
    queries = [f"{SECRET} {number}.{each}" for each in range(number % 4)]
    turns = [
        Turn(
            response=f"<query>{query}</query>",
            action=Action(kind=ActionKind.SEARCH, query=query),
            passages=passages(first + place, 9000 + number),
        )
        for place, query in enumerate(queries)
    ]
    answer = "" if number % 31 == 30 else f"A kingfisher of {1900 + number}. [{first}] [{first + 1}, 7] 【{first + 5}】"
    verdict = FORMS["browsecomp_plus"].read(judge_reply(number)) if answer else None
    return EvaluatedTask(
        agent="s3",
        task=task,
        state="done",
        episode=Episode(
            agent="s3",
            prompt="…",
            initial_passages=passages(first) if number % 5 == 0 else (),
            turns=(*turns, Turn(response="<search_complete>True</search_complete>")),
            selected=(),
            stop_reason=StopReason.FINISHED,
        ),
        answer=answer,
        confidence=verdict.confidence if verdict else None,
        scores={"gen_acc": float(verdict is not None and verdict.correct)},
    )


def outcomes(count: int) -> list[Any]:
    return [outcome_of(result) for number in range(count) if (result := made_up(number)).state == "done"]


# The values of evaluate_run.py (texttron/BrowseComp-Plus, commit b90a68c) for the run files of these questions and the
# judge's replies above: questions, accuracy, recall, searches, calibration error; then what it prints about citations.
PUBLISHED = [
    (20, 30.0, 51.67, 1.7, 0.0, (100.0, 50.83, 66.67)),
    (150, 28.28, 51.72, 1.696551724137931, 0.0, (97.24, 50.12, 66.67)),
    (260, 28.57, 51.72, 1.7023809523809523, 0.0, (96.83, 50.07, 66.67)),
    (400, 29.2, 51.77, 1.7054263565891472, 10.79, (96.9, 50.04, 66.67)),
    (830, 29.05, 51.62, 1.6982543640897756, 23.08, (96.76, 50.02, 66.67)),
]


@pytest.mark.parametrize(("count", "accuracy", "recall", "searches", "error", "citations"), PUBLISHED)
def test_the_published_scores_are_those_of_the_script(
    count: int, accuracy: float, recall: float, searches: float, error: float, citations: tuple[float, float, float]
) -> None:
    found = outcomes(count)
    summary = published_summary(found, model="m")
    assert summary["avg_tool_stats"] == {"search": pytest.approx(searches)}
    names = ("Accuracy (%)", "Recall (%)", "Calibration Error (%)")
    assert [summary[name] for name in names] == [accuracy, recall, error]
    cited = scores(found, without_result=0)["citations"]
    assert tuple(cited[name] for name in ("answers_that_cite", "precision", "recall")) == citations


def test_every_question_counts_in_our_scores() -> None:
    found = outcomes(29)
    ours, theirs = scores(found, without_result=1), published_summary(found, model="")
    right, recalls = sum(one.correct for one in found), [one.recall for one in found]
    assert ours["questions"] == 29 and ours["without_result"] == 1
    assert ours["accuracy"] == round(100 * right / 29, 2) < theirs["Accuracy (%)"] == round(100 * right / 28, 2)
    assert ours["recall"] == round(100 * sum(recalls) / 29, 2) < theirs["Recall (%)"]


# The script's values for answers that are all sure and all wrong, and for 830 of which only the last 130, which it does
# not look at, are wrong; and ours.
@pytest.mark.parametrize(
    ("sure", "right", "published", "ours"),
    [
        ([100.0] * 250, [False] * 250, 63.25, 100.0),
        ([100.0] * 199, [False] * 199, 0.0, 100.0),
        ([100.0] * 99, [False] * 99, 0.0, 100.0),
        ([each / 8.3 for each in range(830)], [each < 700 for each in range(830)], 57.59, 68.15),
    ],
)
def test_the_last_bin_counts_only_in_ours(sure: list[float], right: list[bool], published: float, ours: float) -> None:
    assert round(calibration_error(sure, right, published=True), 2) == published
    assert round(calibration_error(sure, right, published=False), 2) == ours


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 50.0, 80.0, 100.0]), st.booleans()), min_size=1, max_size=450),
    st.integers(),
)
def test_our_calibration_does_not_depend_on_the_order(answers: list[tuple[float, bool]], seed: int) -> None:
    def error(of: Sequence[tuple[float, bool]]) -> float:
        return calibration_error([sure for sure, _ in of], [right for _, right in of], published=False)

    mixed = list(answers)
    random.Random(seed).shuffle(mixed)
    assert error(mixed) == pytest.approx(error(answers)) and 0 <= error(answers) <= 100


@pytest.mark.parametrize(
    ("reply", "correct", "confidence"),
    [
        ("correct: yes\nconfidence: 85%", True, 85.0),
        ("**correct:** no\n**confidence:** 12.5 %", False, 12.5),
        ("**Correct**: Yes\n**Confidence**: 300", True, 100.0),
        ("correct: no\n**correct:** yes", True, None),  # bold goes before plain
        ("[correct_answer]: no\ncorrect: yes", True, None),
        ("<think>correct: no</think>correct: yes", True, None),
    ],
)
def test_the_judges_fields_are_read(reply: str, correct: bool, confidence: float | None) -> None:
    verdict = FORMS["browsecomp_plus"].read(reply)
    assert verdict is not None and (verdict.correct, verdict.confidence, verdict.unclear) == (
        correct,
        confidence,
        False,
    )


@given(st.text(max_size=60))
def test_reading_a_judges_reply_never_raises(reply: str) -> None:
    verdict = FORMS["browsecomp_plus"].read(reply)
    assert verdict is None or "correct" in reply.lower()


@pytest.mark.parametrize(
    ("response", "cited"),
    [
        ("", set()),
        ("It was so [12], and [3, 4; 5].", {"12", "3", "4", "5"}),
        ("In [1999] and 【77†L1】", {"1999", "77", "1"}),
        ("[outer [6] 7] 【a [8】 9]", {"6", "8", "9"}),
        ("no [docid]", set()),
    ],
)
def test_citations_are_numbers_in_brackets(response: str, cited: set[str]) -> None:
    assert citations_in(response) == cited


def test_a_run_file_holds_what_the_script_reads() -> None:
    run = run_file(made_up(15), model="m", plain=False)
    assert (run["query_id"], run["status"]) == ("15", "completed")
    assert run["tool_call_counts"] == {"search": 4}  # three turns, and the retrieval before them
    assert run["retrieved_docids"] == ["45", "9015", "46", "47"]
    assert [item["type"] for item in run["result"]] == [
        "tool_call",
        *["reasoning", "tool_call"] * 3,
        "reasoning",
        "output_text",
    ]
    assert run["result"][-1]["output"].startswith("A kingfisher of 1915.")
    assert json.loads(run["result"][2]["arguments"]) == {"query": f"{SECRET} 15.0"}
    assert run_file(made_up(30), model="m", plain=False)["status"] == "failed"


def test_protected_texts_are_encrypted_with_the_key_of_their_set() -> None:
    plain = run_file(made_up(15), model="m", plain=False)
    protected = run_file(made_up(15, protected=KEY), model="m", plain=False)
    written = json.dumps(protected)
    assert SECRET not in written and "kingfisher" not in written and KEY not in written
    names = ("query_id", "tool_call_counts", "status", "retrieved_docids", "metadata")
    assert all(protected[name] == plain[name] for name in names)
    for ours, theirs in zip(protected["result"], plain["result"], strict=True):
        assert ours["type"] == theirs["type"]
        for field in ("arguments", "output"):
            assert decrypted(ours[field], KEY, place="here") == theirs[field]
    assert run_file(made_up(15, protected=KEY), model="m", plain=True) == plain


def test_a_question_that_failed_has_no_run_file_and_counts() -> None:
    results = [made_up(number, protected=KEY) for number in range(29)]
    files = dict(run_folder(results, {"policy": {"model": "m"}}, plain=False))
    assert [name for name in files if name.startswith("run_")] == [f"run_{number}.json" for number in range(28)]
    assert files["scores.json"]["questions"] == 29 and files["evaluation_summary.json"]["LLM"] == "m"
    assert SECRET not in json.dumps(files) and "kingfisher" not in json.dumps(files)
