"""What the report gathers from folders, its plain forms, and which published numbers stand beside ours."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3_agent.agl.guard import GuardReport
from s3_agent.errors import ConfigError
from s3_agent.evaluation.coverage import kept_coverage
from s3_agent.evaluation.report import packed
from s3_agent.evaluation.report.anchors import anchor_of
from s3_agent.evaluation.report.gather import gather
from s3_agent.evaluation.report.render import write_report
from s3_agent.evaluation.report.signs import markdown_of, signs_of
from s3_agent.types import Task
from tests.evaluated import protect, write_collapse, write_evaluation, write_run

WIKI18 = 21_015_324


def test_every_result_is_an_episode_and_passages_are_kept_once(tmp_path: Path) -> None:
    report = gather([write_evaluation(tmp_path / "evaluation", questions=200)])
    assert len(report["episodes"]) == 600 and len(report["tasks"]) == 200
    assert len(report["passages"]) == len({title for title, _ in report["passages"]}) <= 500
    failed = [row for row in report["episodes"] if row["outcome"] == "failed"]
    assert [row["failure"][0] for row in failed] == ["retriever"] * 2 and all("scores" not in row for row in failed)


def test_a_turn_shows_what_its_record_holds(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "evaluation", questions=9)
    report = gather([folder])
    passages = list(report["passages"])
    kept = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for row, record in zip(report["episodes"], kept, strict=True):
        for turn, wanted in zip(row["turns"], record["episode"]["turns"], strict=True):
            assert turn["response"] == wanted["response"] and turn["query"] == wanted["action"]["query"]
            texts = None if turn["passages"] is None else [passages[number][1] for number in turn["passages"]]
            assert texts == (None if wanted["passages"] is None else [one["text"] for one in wanted["passages"]])


def test_a_run_has_its_validation_passes_and_its_training(tmp_path: Path) -> None:
    report = gather([write_run(tmp_path / "run")])
    assert [group["agent"] for group in report["groups"]] == ["validation 1 of 2", "training", "validation 2 of 2"]
    assert report["runs"][0]["summary"] is None and len(report["runs"][0]["steps"]) == 7
    [failed] = [row for row in report["episodes"] if row["outcome"] == "failed"]
    assert failed["failure"] == ("generator", "the generator was gone")


def test_the_signs_of_a_collapse_are_what_was_logged_with_the_guards_step(tmp_path: Path) -> None:
    [run] = gather([write_collapse(tmp_path / "run")])["runs"]
    signs = run["signs"]
    curves = {curve["name"]: dict(curve["points"]) for panel in signs["panels"] for curve in panel["curves"]}
    assert list(curves) == ["correct", "incorrect", "entropy", "searches", "invalid actions", "reward", "validation"]
    assert [len(panel["curves"]) for panel in signs["panels"]] == [2, 1, 1, 1, 2]
    assert len(curves["correct"]) == 40 and curves["correct"][40] == pytest.approx(-0.7)
    assert 7 not in curves["incorrect"], "what was not a number is no point"
    assert curves["validation"] == {
        step: pytest.approx(0.4 + 0.01 * min(step, 20) - max(0, step - 20) / 50, abs=1e-4) for step in range(0, 41, 4)
    }, "the accuracy, as the guard takes it"
    assert (signs["guard"]["step"], signs["guard"]["best_step"]) == (40, 20)
    assert signs["sentence"] == (
        "The guard tripped after step 40: validation fell. It stopped the run; step 20 validated best (0.600)."
    )


def test_a_run_without_such_metrics_shows_what_it_has(tmp_path: Path) -> None:
    signs = gather([write_run(tmp_path / "run")])["runs"][0]["signs"]
    assert [curve["name"] for panel in signs["panels"] for curve in panel["curves"]] == ["reward", "validation"]
    assert signs["guard"] is None and signs["sentence"] == "No rule of the guard has tripped."


def test_the_guard_of_a_summary_counts_where_its_file_is_gone(tmp_path: Path) -> None:
    folder = write_collapse(tmp_path / "run", stopped=False)
    (folder / "summary.json").write_text(json.dumps({"guard": json.loads((folder / "guard.json").read_text())}))
    (folder / "guard.json").unlink()
    signs = gather([folder])["runs"][0]["signs"]
    assert signs["guard"]["step"] == 40 and "It only warned" in signs["sentence"]


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 300))
def test_the_markdown_table_is_short_and_has_the_ends_and_the_guards_steps(last: int, first: int, second: int) -> None:
    best, tripped = sorted((min(first, last), min(second, last)))
    guard = GuardReport(reason="r", step=tripped, stopped=True, best_step=best, best_validation=0.5)
    rows = [{"step": step, "training/reward": step / 7, "val/reward": None} for step in range(last + 1)]
    text = markdown_of(signs_of(rows, guard))
    shown = {
        int(step): mark for step, mark in re.findall(r"^\| (\d+)(?: \((\w+)\))? \| [\d.]+ \|$", text, re.MULTILINE)
    }
    assert {0, last, best, tripped} <= shown.keys() and min(last + 1, 20) <= len(shown) <= 22
    assert shown[tripped] and "validation |" not in text


@pytest.mark.parametrize("left", ["", '{"steps": ', "[]"], ids=repr)
def test_a_summary_that_a_full_disk_has_cut_is_none(tmp_path: Path, left: str) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "summary.json").write_text(left)
    assert gather([folder])["runs"][0]["summary"] is None


def test_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    report = gather([write_run(tmp_path / "a" / "run"), write_run(tmp_path / "b" / "run")])
    assert [run["name"] for run in report["runs"]] == ["a/run", "b/run"]


@pytest.mark.parametrize("ending", ["html", "json", "md"])
def test_every_form_is_written(tmp_path: Path, ending: str) -> None:
    folders = [write_evaluation(tmp_path / "evaluation"), write_run(tmp_path / "run")]
    write_report(folders, tmp_path / f"deep/report.{ending}")
    text = (tmp_path / f"deep/report.{ending}").read_text(encoding="utf-8")
    assert {"html": "<!doctype html>", "json": "{", "md": "# evaluation"}[ending] == text[: len(text)].split("\n")[0]
    if ending == "json":
        report = gather(folders)
        whole = {**report, **{name: list(report[name]) for name in ("episodes", "passages")}}
        assert json.loads(text) == json.loads(json.dumps(whole))
    if ending == "md":
        assert "| 6 | 0.600 | - |" in text and "No rule of the guard has tripped." in text
        assert "| rag | 60/60 |" in text and "no comparable published number" in text


@given(st.lists(st.text() | st.integers() | st.lists(st.none(), max_size=2), max_size=12), st.integers(1, 5))
def test_a_packed_list_is_the_list(values: list[Any], size: int) -> None:
    with mock.patch.object(packed, "PART", size):
        made = packed.Packed()
        for number, value in enumerate(values):
            assert len(made) == number
            made.append(value)
        parts = [packed.unpack(part) for part in made.parts()]
        assert len(made) == len(values) and list(made) == values
    assert [len(part) for part in parts[:-1]] == [size] * (len(parts) - 1)
    assert [value for part in parts for value in part] == values


def test_a_page_has_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_evaluation(tmp_path / "evaluation", questions=700)
    write_report([folder], tmp_path / "whole.html")
    monkeypatch.setattr("s3_agent.evaluation.report.render._MOST_BYTES", 20_000)
    write_report([folder], tmp_path / "cut.html")
    whole, cut = (
        sum(map(len, re.findall(r'id="(?:episodes|passages)-[0-9]+">([^<]*)<', (tmp_path / name).read_text())))
        for name in ("whole.html", "cut.html")
    )
    assert 20_000 < cut < 0.7 * whole


def test_what_is_no_folder_of_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no evaluation"):
        gather([tmp_path])
    with pytest.raises(ConfigError, match="known extension"):
        write_report([write_run(tmp_path / "run")], tmp_path / "report.pdf")
    folder = write_evaluation(tmp_path / "evaluation", questions=3)
    (folder / "results.jsonl").write_text('{"agent": "s3"}\n')
    with pytest.raises(ConfigError, match=r"results\.jsonl:1 is not a result"):
        gather([folder])


def _agent(name: str, model: str = "", answers: str = "generator") -> dict[str, Any]:
    return {"settings": {"name": name}, "policy": {"model": model}, "answers": answers}


def _services(generator: str, passages: int = WIKI18, backend: str = "dense") -> dict[str, Any]:
    return {"retriever": {"passages": passages, "backend": backend}, "generator": {"model": generator}}


@pytest.mark.parametrize(
    ("agent", "generator", "method", "accuracy"),
    [
        (_agent("s3"), "Qwen/Qwen2.5-14B-Instruct-GPTQ-Int4", "s3", 67.2),
        (_agent("rag"), "Qwen/Qwen2.5-7B-Instruct", "RAG-E5", 62.1),
        (_agent("search_r1", "SearchR1-nq_hotpotqa_train-qwen2.5-7b-em-ppo"), "Qwen2.5-7B", "Search-R1-7B (Ret)", 61.3),
        (_agent("search_r1", "qwen2.5-3b-em-ppo", "self"), "any", "Search-R1-3B (self)", 47.0),
        (_agent("ircot", "Qwen2.5-14B-Instruct"), "claude-3-haiku-20240307", "IRCoT 14B", 68.3),
    ],
)
def test_the_published_row_of_the_same_setting(
    agent: dict[str, Any], generator: str, method: str, accuracy: float
) -> None:
    anchor = anchor_of(agent, _services(generator))
    assert anchor.method == method and anchor.scores["nq"][0] == accuracy and "Table 1" in anchor.source


def test_another_setting_has_no_published_row() -> None:
    assert "corpus" in anchor_of(_agent("s3"), _services("Qwen2.5-14B", passages=500)).reason
    assert "not in the table" in anchor_of(_agent("s3"), _services("SmolLM2-135M-Instruct")).reason
    assert not anchor_of(_agent("search_o1", "Qwen2.5-14B"), _services("Qwen2.5-7B")).scores


def test_of_protected_tasks_a_report_has_only_ids_and_numbers(tmp_path: Path) -> None:
    folders = [write_evaluation(tmp_path / "evaluation", questions=100, evidence=True), write_run(tmp_path / "run")]
    for folder in folders:
        protect(folder)
    report, written = gather(folders), ""
    assert len(report["episodes"]) == 300 + 96 and report["withheld"].startswith("The texts of 100 questions are")
    assert {len(row["turns"]) for row in report["episodes"] if "turns" in row} > {1, 2}
    for page in (tmp_path / "report.json", tmp_path / "report.md"):
        write_report(folders, page)
        written += page.read_text(encoding="utf-8")
    # Questions, passages, queries, answers, messages of failures, and the canary of the made-up folders.
    for secret in ("town", "Town", "where is it", "lies", "<query>", "connection refused", "was gone", "canary"):
        assert secret not in written, secret
    write_report(folders, page, show_protected=True)
    assert page.stat().st_mode & 0o077 == 0
    shown = gather(folders, show_protected=True)
    assert "Town 7" in {title for title, _ in shown["passages"]} and shown["withheld"] == ""


def test_a_report_of_other_tasks_withholds_nothing(tmp_path: Path) -> None:
    assert gather([write_evaluation(tmp_path / "evaluation")])["withheld"] == ""


def test_what_is_rewarded_by_evidence_is_neither_right_nor_wrong(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    path = folder / "episodes.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps({**row, "accuracy": None}) + "\n" for row in rows), encoding="utf-8")
    counted = Counter(row["outcome"] for row in gather([folder])["episodes"])
    assert counted == {"unscored": len(rows) - 1, "failed": 1}
    bare = [{**row, "accuracy": None, "episode": None} for row in rows]  # of a user's class: only its reward is known
    path.write_text("".join(json.dumps(row) + "\n" for row in bare), encoding="utf-8")
    assert Counter(row["outcome"] for row in gather([folder])["episodes"]).keys() == {"right", "wrong", "failed"}


def test_gold_passages_are_those_that_the_measures_count(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "evaluation", questions=3, agents=("s3",), evidence=True)
    path = folder / "results.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["episode"]["initial_passages"] = [
            {
                "id": "x",
                "title": f"TOWN {row['task']['id'][1:]}",
                "text": "Another document, whose title is in capitals.",
            },
            {"id": "y", "title": f"Town {row['task']['id'][1:]}", "text": "The document."},
        ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def marked() -> list[set[str]]:
        report = gather([folder])
        titles = [title for title, _ in report["passages"]]
        return [{titles[number] for number in row.get("gold", [])} for row in report["episodes"]]

    assert all({f"TOWN {number}", f"Town {number}"} <= titles for number, titles in enumerate(marked()))
    tasks = [Task.model_validate(row["task"]) for row in rows]
    corpus = tmp_path / "corpus.jsonl"
    towns = [{"id": str(number), "title": f"Town {number}", "text": "A town."} for number in range(1, 3)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in towns))
    assert kept_coverage(folder, tasks, corpus, identity={}).exact == {"Town 1", "Town 2"}
    found = marked()
    assert "TOWN 0" in found[0] and "TOWN 1" not in found[1] and "TOWN 2" not in found[2]
    assert all(f"Town {number}" in titles for number, titles in enumerate(found))


def test_a_question_that_the_measures_leave_out_has_no_gold_passages(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "evaluation", questions=9, evidence=True)
    assert any("gold" in row for row in gather([folder])["episodes"])
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(json.dumps({"id": "0", "title": "Elsewhere", "text": "Nothing."}) + "\n")
    kept = (json.loads(line)["task"] for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines())
    tasks = {row["id"]: Task.model_validate(row) for row in kept}
    assert len(kept_coverage(folder, [*tasks.values()], corpus, identity={}).left_out) == 9
    assert not any("gold" in row for row in gather([folder])["episodes"])
