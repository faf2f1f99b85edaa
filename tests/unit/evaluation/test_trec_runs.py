"""Run files: trec_eval on what is exported gives the numbers of our table, with double ids and titles with spaces."""

from pathlib import Path
from statistics import fmean

import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from s3_agent.evaluation.coverage import Coverage
from s3_agent.evaluation.evidence import LISTS, evidence_at_the_end, evidence_by_turn
from s3_agent.evaluation.export import export_results
from s3_agent.evaluation.records import SCORES, EvaluatedTask, Failure
from s3_agent.evaluation.trec import run_lines, write_trec
from s3_agent.evidence import GoldDocuments
from s3_agent.types import Episode, Evidence, Passage, StopReason, Task, Turn
from tests.evaluated import write_evaluation

TITLES = st.lists(st.sampled_from([f'"Town {n}"' for n in range(6)] + ["town 1", "Other  place", ""]), max_size=8)


def passages(titles: list[str]) -> tuple[Passage, ...]:
    return tuple(Passage(id="", title=title, text="text") for title in titles)


def evaluated(number: int, initial: list[str], found: list[str], selected: list[str]) -> EvaluatedTask:
    needed = (Evidence(title=f"Town {number % 6}", answer=True), Evidence(title="Town 2", relevance=2))
    task = Task(id=f"question {number}", question=f"Where is {number}?", golden_answers=("a",), evidence=needed)
    episode = Episode(
        agent="s3",
        prompt="",
        initial_passages=passages(initial),
        turns=(Turn(response="", passages=passages(found)),),
        selected=passages(selected),
        stop_reason=StopReason.FINISHED,
    )
    gold = GoldDocuments(needed)
    return EvaluatedTask(
        agent="s3",
        task=task,
        state="done",
        episode=episode,
        shown=episode.selected,
        scores=dict.fromkeys(SCORES, 0.0),
        evidence=evidence_at_the_end(gold, episode, episode.selected),
        evidence_by_turn=evidence_by_turn(gold, episode),
    )


def trec_means(folder: Path, run: str) -> dict[str, float]:
    """The means over all questions of the qrels, as `trec_eval -c` computes them, read by the library's own parser."""
    with (folder / "qrels.txt").open() as file:
        qrels = pytrec_eval.parse_qrel(file)
    ranked: dict[str, dict[str, float]] = {}
    if (folder / run).exists():
        with (folder / run).open() as file:
            ranked = pytrec_eval.parse_run(file)
    measures = {"set_recall", "set_P", "recall.5", "ndcg_cut.10", "recip_rank"}
    found = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(ranked)
    names = {
        "set_recall": "recall",
        "set_P": "precision",
        "recall_5": "recall@5",
        "ndcg_cut_10": "ndcg@10",
        "recip_rank": "mrr",
    }
    return {
        ours: fmean(found[name][theirs] if name in found else 0.0 for name in qrels) for theirs, ours in names.items()
    }


@settings(max_examples=40)
@given(st.lists(st.tuples(TITLES, TITLES, TITLES), min_size=1, max_size=4))
def test_trec_eval_agrees_with_the_table(
    tmp_path_factory: pytest.TempPathFactory, episodes: list[tuple[list[str], list[str], list[str]]]
) -> None:
    folder = tmp_path_factory.mktemp("trec")
    results = [evaluated(number, *lists) for number, lists in enumerate(episodes)]
    write_trec(results, folder, Coverage())
    for name in LISTS:
        found = trec_means(folder, f"s3/{name}.run")
        assert found == pytest.approx({key: fmean(one.evidence[f"{name}_{key}"] for one in results) for key in found})
    for number in range(2):
        found = trec_means(folder, f"s3/search-{number}.run")
        assert found["ndcg@10"] == pytest.approx(
            fmean(one.evidence_by_turn[number]["search_ndcg@10"] for one in results)
        )


def test_a_document_stands_once_and_a_nameless_one_has_a_name_without_spaces() -> None:
    lines = [*run_lines("a question", ["A b", "A b", "\ntext " * 60, "c"], tag="s3:ret")]
    assert [line.split(" ") for line in lines] == [
        ["a_question", "Q0", "A_b", "1", "3", "s3:ret"],
        ["a_question", "Q0", lines[1].split(" ")[2], "2", "2", "s3:ret"],
        ["a_question", "Q0", "c", "3", "1", "s3:ret"],
    ]
    assert lines[1].split(" ")[2].startswith("passage-")


def test_failed_and_left_out_questions_are_in_no_run_and_no_qrel(tmp_path: Path) -> None:
    done = evaluated(0, ["Town 0"], [], ["Town 0"])
    failed = EvaluatedTask(
        agent="rag",
        task=evaluated(1, [], [], []).task,
        state="failed",
        failure=Failure(boundary="retriever", message="x"),
    )
    paths = write_trec([done, failed], tmp_path, Coverage(left_out=frozenset({"question 1"})))
    assert {path.relative_to(tmp_path).parts[0] for path in paths} == {
        "topics.tsv",
        "qrels.txt",
        "qrels-answers.txt",
        "s3",
    }
    assert {line.split()[0] for line in (tmp_path / "qrels.txt").read_text().splitlines()} == {"question_0"}
    assert len((tmp_path / "topics.tsv").read_text().splitlines()) == 2


def test_each_sample_is_exported_by_itself_in_every_format(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "evaluation", agents=("rag", "s3"), questions=6, samples=3, evidence=True)
    files = {
        "trec": "retrieved.run",
        "s3": "results.json",
        "search_r1": "eval_only_r1.json",
    }
    for form, file in files.items():
        written = export_results(folder, tmp_path / form, form=form)
        for agent in ("rag", "s3"):
            for sample in (1, 2, 3):
                assert tmp_path / form / agent / f"sample-{sample}" / file in written
