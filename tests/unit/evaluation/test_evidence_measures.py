"""Evidence measures agree with an independent computation on any rankings; missing evidence is never a zero."""

import json
from itertools import chain
from math import log2
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3_agent.data.tasks import load_tasks
from s3_agent.evaluation.coverage import FILE, Coverage, coverage_of, kept_coverage, read_coverage
from s3_agent.evaluation.evidence import CUTS, evidence_at_the_end, evidence_by_turn, measures_of
from s3_agent.evaluation.records import SCORES, EvaluatedTask
from s3_agent.evaluation.table import numbers_of, table_of
from s3_agent.evaluation.views.table import markdown
from s3_agent.evidence import GoldDocuments
from s3_agent.types import Episode, Evidence, Passage, StopReason, Task, Turn

NAMES = [f"d{number}" for number in range(30)]
RANKINGS = st.lists(st.sampled_from(NAMES), max_size=40)
"""With ids that occur twice."""


def passages(names: list[str]) -> tuple[Passage, ...]:
    return tuple(Passage(id=name, title="", text=f"text of {name}") for name in names)


def episode(initial: list[str], turns: list[tuple[list[str], list[str]] | None], selected: list[str]) -> Episode:
    """`turns` hold what was shown and what was left out; None is a turn without a search."""
    return Episode(
        agent="s3",
        prompt="",
        initial_passages=passages(initial),
        turns=tuple(
            Turn(response="")
            if turn is None
            else Turn(response="", passages=passages(turn[0]), left_out=passages(turn[1]))
            for turn in turns
        ),
        selected=passages(selected),
        stop_reason=StopReason.FINISHED,
    )


def expected(gold: set[str], names: list[str], grades: dict[str, int] | None = None) -> dict[str, float]:
    """The definitions, written out without the library."""
    gain = grades or dict.fromkeys(gold, 1)
    seen: list[str] = []
    for name in names:
        if name not in seen:
            seen.append(name)
    hits = [name in gold for name in seen]
    best = sorted(gain.values(), reverse=True)[:10]
    ideal = sum(grade / log2(rank + 1) for rank, grade in enumerate(best, 1))
    return {
        "recall": sum(hits) / len(gold),
        "precision": sum(hits) / len(seen) if seen else 0.0,
        **{f"recall@{cut}": sum(hits[:cut]) / len(gold) for cut in CUTS},
        "ndcg@10": sum(gain.get(name, 0) / log2(rank + 1) for rank, name in enumerate(seen[:10], 1)) / ideal,
        "mrr": next((1 / rank for rank, hit in enumerate(hits, 1) if hit), 0.0),
        "documents": float(len(seen)),
    }


GOLDS = st.sets(st.sampled_from([*NAMES, "never", "found"]), min_size=1, max_size=12)


@given(st.dictionaries(st.sampled_from([*NAMES, "never", "found"]), st.integers(1, 4), min_size=1), RANKINGS)
def test_measures_of_any_ranking(grades: dict[str, int], names: list[str]) -> None:
    found = GoldDocuments([Evidence(id=name, relevance=grade) for name, grade in grades.items()])
    assert measures_of(found, found.ranking(passages(names))) == pytest.approx(expected({*grades}, names, grades))


@given(GOLDS, RANKINGS, st.lists(st.none() | st.tuples(RANKINGS, RANKINGS), max_size=4), RANKINGS, RANKINGS)
def test_lists_and_searches_of_any_episode(
    gold: set[str],
    initial: list[str],
    turns: list[tuple[list[str], list[str]] | None],
    selected: list[str],
    handed_on: list[str],
) -> None:
    documents = GoldDocuments([Evidence(id=name) for name in gold])
    played = episode(initial, turns, selected)
    searches = [initial, *([*shown, *left_out] for shown, left_out in filter(None, turns))]
    lists = {
        "retrieved": [*chain.from_iterable(searches)],
        "shown": [*initial, *chain.from_iterable(turn[0] for turn in turns if turn)],
        "selected": selected,
        "handed_on": handed_on,
    }
    assert evidence_at_the_end(documents, played, passages(handed_on)) == pytest.approx(
        {
            f"{name}_{measure}": value
            for name, names in lists.items()
            for measure, value in expected(gold, names).items()
        }
    )
    assert not any(name.startswith("handed_on") for name in evidence_at_the_end(documents, played, None))
    rows = evidence_by_turn(documents, played)
    assert len(rows) == len(searches)
    for number, (row, names) in enumerate(zip(rows, searches, strict=True)):
        own = expected(gold, names)
        assert row["recall"] == expected(gold, [*chain.from_iterable(searches[: number + 1])])["recall"]
        for measure in ("recall", "precision", "ndcg@10", "mrr"):
            assert row[f"search_{measure}"] == pytest.approx(own[measure])


def test_the_order_decides_and_not_the_names_of_equal_scores() -> None:
    gold = GoldDocuments([Evidence(id="a"), Evidence(id="z", answer=True)])
    assert measures_of(gold, ["y", "z", "a"])["mrr"] == measures_of(gold, ["b", "a", "z"])["mrr"] == 0.5
    assert measures_of(gold, ["y", "a"])["answer_recall"] == 0.0


def corpus(folder: Path, rows: list[dict[str, str]]) -> Path:
    path = folder / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def task(name: str, *evidence: Evidence) -> Task:
    return Task(id=name, question="q", golden_answers=("a",), evidence=evidence or None)


def test_what_the_corpus_lacks_is_counted_and_a_question_without_any_is_left_out(tmp_path: Path) -> None:
    path = corpus(
        tmp_path,
        [
            {"id": "1", "contents": '"Us"\ntext'},
            {"id": "2", "contents": '"Norway"\ntext'},
            {"id": "d7#2", "text": "a piece"},
            {"text": "the fourth passage has no id of its own"},
        ],
    )
    tasks = [
        task("exact", Evidence(title="Norway"), Evidence(title="Atlantis")),
        task("folded", Evidence(title="US")),
        task("none", Evidence(title="Atlantis"), Evidence(id="9")),
        task("pieces", Evidence(id="d7", pieces=("d7#1", "d7#2"))),
        task("numbered", Evidence(id="3")),
        task("unknown"),
    ]
    found = coverage_of(tasks, path)
    assert found == Coverage(
        questions=5, documents=6, found=4, exact=frozenset({"Norway"}), left_out=frozenset({"none"})
    )
    assert coverage_of(tasks, None) == Coverage(questions=5, documents=6)
    assert coverage_of(tasks[-1:], path) == Coverage(found=0)


def test_the_corpus_is_read_once_for_the_same_questions(tmp_path: Path) -> None:
    path, kept = corpus(tmp_path, [{"id": "1", "text": "x"}]), tmp_path
    tasks = [task("t", Evidence(id="1"))]
    first = kept_coverage(kept, tasks, path, identity={"corpus": "a"})
    path.unlink()
    assert kept_coverage(kept, tasks, path, identity={"corpus": "a"}) == first
    other = corpus(tmp_path, [{"id": "2", "text": "x"}])
    assert kept_coverage(kept, tasks, other, identity={"corpus": "b"}).left_out == {"t"}
    (tmp_path / FILE).write_text("{")
    assert read_coverage(tmp_path) == Coverage()
    assert kept_coverage(kept, tasks, other, identity={"corpus": "b"}).left_out == {"t"}


def result(name: str, evidence: dict[str, float], curve: tuple[float, ...] = ()) -> EvaluatedTask:
    return EvaluatedTask(
        agent="s3",
        task=task(name, Evidence(id="1")),
        state="done",
        scores=dict.fromkeys(SCORES, 0.0),
        counts={"searches": 1},
        evidence=evidence,
        evidence_by_turn=tuple({"recall": value} for value in curve),
    )


def test_a_table_has_evidence_of_the_questions_that_have_it() -> None:
    full = {f"{one}_{name}": 1.0 for one in ("retrieved", "selected") for name in ("recall", "precision")}
    results = [
        result("a", full, (0.0, 1.0)),
        result("b", dict.fromkeys(full, 0.0), (0.0,)),
        result("c", {}),
    ]
    table = table_of(
        map(numbers_of, results), ["s3"], coverage={"questions": 3, "left_out": 1, "documents": 4, "in_corpus": 3}
    )
    [agent] = table.agents
    assert agent.overall["gen_acc"].n == 3
    recall = agent.overall["evidence_retrieved_recall"]
    assert (recall.mean, recall.n) == (0.5, 2)
    assert [point.mean for point in agent.evidence_after] == [0.0, 0.5]
    text = markdown(table)
    assert "Evidence (3 of 4 gold documents, 75.0%, are in the corpus; 1 questions without any are left out)" in text
    assert "| s3 | 2 | 0.500 |" in text


def test_the_embedded_questions_name_their_passages() -> None:
    from s3_agent.embedded import CORPUS, TRAIN, VALIDATION

    for path in (TRAIN, VALIDATION):
        tasks = load_tasks(path)
        found = coverage_of(tasks, CORPUS)
        assert (found.questions, found.left_out) == (len(tasks), frozenset()) and found.found == found.documents
        assert all(len(one.evidence or ()) == one.hops for one in tasks)
