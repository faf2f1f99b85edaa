"""From a question's episode to its numbers, and from numbers to the table: what is missing is in no mean."""

import hashlib
import json
from pathlib import Path

import pytest

from s3_agent.data.tasks import load_tasks
from s3_agent.errors import ConfigError
from s3_agent.evaluation import job as evaluate
from s3_agent.evaluation.export import export_results
from s3_agent.evaluation.records import SCORES, EvaluatedTask, Failure
from s3_agent.evaluation.scores import cost_of, counts_of, recall_by_turn
from s3_agent.evaluation.table import Numbers, numbers_of, table_of
from s3_agent.evaluation.views.table import markdown
from s3_agent.machine.model_files import model_identity
from s3_agent.recipe import Price
from s3_agent.types import Episode, Passage, StopReason, Task, Turn

NORWAY = Passage(id="1", title="Norway", text="The currency is the krone.")
SPAIN = Passage(id="2", title="Spain", text="The currency is the euro.")
EPISODE = Episode(
    agent="s3",
    prompt="p",
    initial_passages=(SPAIN,),
    turns=(
        Turn(response="a", passages=(), prompt_tokens=10, response_tokens=2),
        Turn(response="b", passages=(NORWAY,), prompt_tokens=20, response_tokens=3),
        Turn(response="c", prompt_tokens=30, response_tokens=4),
    ),
    selected=(NORWAY,),
    stop_reason=StopReason.FINISHED,
)
TASK = Task(id="t", question="Which currency?", golden_answers=("Krone",), data_source="nq")


def evaluated(agent: str = "s3", *, task: Task = TASK, right: float = 1.0) -> EvaluatedTask:
    return EvaluatedTask(
        agent=agent,
        task=task,
        state="done",
        episode=EPISODE,
        answer="krone",
        scores=dict.fromkeys(SCORES, right),
        counts=counts_of(EPISODE, {"prompt_tokens": 100, "response_tokens": 5}),
        timings={"episode": 1.0, "answer": 0.5, "judge": 9.0},
    )


def test_what_an_episode_took() -> None:
    assert recall_by_turn(EPISODE, ["krone"]) == (False, False, True)
    assert recall_by_turn(EPISODE, ["euro"]) == (True, True, True)
    counts = counts_of(EPISODE, {"prompt_tokens": 100, "response_tokens": None})
    assert counts == {
        **{"searches": 2, "turns": 3, "policy_prompt_tokens": 60, "policy_response_tokens": 9},
        "generator_prompt_tokens": 100,
    }
    assert [counts_of(EPISODE, {"cut": cut}).get("answer_cut") for cut in (True, False, None)] == [1, 0, None]


def test_answers_that_were_cut_are_shown_where_there_are_any() -> None:
    whole = [Numbers("rag", f"q{n}", "nq", None, {"gen_acc": 1.0, "answer_cut": 0.0}) for n in range(4)]
    cut = [Numbers("s3", f"q{n}", "nq", None, {"gen_acc": 1.0, "answer_cut": float(n == 0)}) for n in range(4)]
    assert "answers cut |" not in markdown(table_of(whole, ["rag"]))
    shown = markdown(table_of([*whole, *cut], ["rag", "s3"]))
    assert "answers cut |" in shown and "| 0.250 |" in shown


def test_a_cost_needs_every_price_and_every_count() -> None:
    counts = counts_of(EPISODE, {"prompt_tokens": 100, "response_tokens": 5})
    prices = {"small": Price(prompt=1.0, response=2.0), "large": Price(prompt=10.0, response=20.0)}
    models = {"policy": "small", "generator": "large"}
    assert cost_of(counts, models=models, prices=prices) == pytest.approx((60 + 18 + 1000 + 100) / 1e6)
    assert cost_of(counts, models={"policy": "small"}, prices=prices) == pytest.approx(78 / 1e6)
    assert cost_of(counts, models=models, prices={"small": prices["small"]}) is None
    assert cost_of({"generator_prompt_tokens": 1}, models={"generator": "large"}, prices=prices) is None


def test_a_failed_question_is_in_no_mean_and_in_no_pair() -> None:
    rows = [
        *(Numbers("s3", f"q{n}", "nq", None, {"gen_acc": 1.0, "f1": 0.5}) for n in range(3)),
        Numbers("s3", "q3", "nq", "generator", {}),
        *(Numbers("rag", f"q{n}", "nq", None, {"gen_acc": 0.0, "f1": 0.5}) for n in range(1, 4)),
        Numbers("rag", "q0", "nq", "judge", {}),
    ]
    table = table_of(rows, ["s3", "rag", "unasked"])
    s3, rag = table.agents
    assert (s3.questions, s3.evaluated, s3.failed, s3.overall["gen_acc"].mean) == (4, 3, {"generator": 1}, 1.0)
    assert (rag.failed, rag.overall["gen_acc"].n) == ({"judge": 1}, 3)
    [compared] = [one for one in table.differences if one.measure == "gen_acc"]
    assert (compared.first, compared.second, compared.n, compared.gain) == ("s3", "rag", 2, -1.0)
    assert "3/4 (1 generator)" in markdown(table)


def test_a_macro_average_over_fewer_sources_is_not_shown() -> None:
    right = {"gen_acc": 1.0, "exact_match": 0.0}
    sources = {f"q{n}": "nq" if n < 5 else "hotpot" for n in range(8)}
    rows = [
        Numbers(agent, question, source, "policy" if (agent, source) == ("s3", "hotpot") else None, right)
        for agent in ("s3", "rag")
        for question, source in sources.items()
    ]
    section = markdown(table_of(rows, ["s3", "rag"])).partition("by data source")[2].partition("##")[0]
    lines = {line.split("|")[1].strip(): line for line in section.splitlines() if line.startswith("|")}
    assert lines["rag"].rstrip("| ").endswith("100.0 (0.0) [100.0, 100.0]")
    assert lines["s3"].rstrip("| ").endswith("-")


def test_an_agent_without_any_result_is_in_the_table() -> None:
    table = table_of([Numbers("s3", "q0", "nq", "policy", {})], ["s3"])
    assert (table.agents[0].evaluated, table.agents[0].overall) == (0, {})
    assert "0/1 (1 policy)" in markdown(table)


def test_numbers_of_a_result() -> None:
    found = numbers_of(evaluated())
    assert (found.values["tokens"], found.values["seconds"], found.values["gen_acc"]) == (174.0, 1.5, 1.0)
    failed = EvaluatedTask(agent="s3", task=TASK, state="failed", failure=Failure(boundary="judge", message="gone"))
    assert numbers_of(failed) == Numbers("s3", "t", "nq", "judge", {})


def test_an_export_keeps_every_question_or_refuses(tmp_path: Path) -> None:
    failed = EvaluatedTask(
        agent="rag", task=TASK, state="failed", failure=Failure(boundary="generator", message="gone")
    )
    path = tmp_path / "results.jsonl"
    path.write_text("".join(one.model_dump_json() + "\n" for one in (evaluated("a/b"), failed)))
    export_results(tmp_path, tmp_path / "out", form="s3")
    stats = json.loads((tmp_path / "out" / "rag" / "results_stats.json").read_text())
    assert (stats["total_questions"], stats["processed_questions"], stats["remaining_questions"]) == (1, 0, 1)
    assert json.loads((tmp_path / "out" / "a_b" / "nq_output_sequences.json").read_text())[TASK.question]
    twice = (evaluated(), evaluated(task=TASK.model_copy(update={"id": "u"})))
    path.write_text("".join(one.model_dump_json() + "\n" for one in twice))
    with pytest.raises(ConfigError, match="occur twice"):
        export_results(tmp_path, tmp_path / "out", form="s3")
    path.write_text(twice[0].model_dump_json() + '\n{"agent": "s3"')
    with pytest.raises(ConfigError, match=r"results\.jsonl:2 is not a result"):
        export_results(tmp_path, tmp_path / "out", form="s3")
    with pytest.raises(ConfigError, match="holds no results"):
        export_results(tmp_path / "none", tmp_path / "out", form="s3")


def test_a_model_folder_is_known_by_its_content(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(3_000_000))
    first = model_identity(str(tmp_path))
    assert model_identity(str(tmp_path)) == first
    with weights.open("r+b") as file:
        file.seek(1_234_567)
        file.write(b"x")
    assert model_identity(str(tmp_path)) != first
    assert model_identity("org/name") == {"name": "org/name"}


def test_questions_that_change_while_they_are_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps({"id": "t", "question": "q?", "golden_answers": ["a"]}) + "\n")
    digest, tasks = evaluate.read_questions(path, None)
    assert (digest, [task.id for task in tasks]) == (hashlib.sha256(path.read_bytes()).hexdigest(), ["t"])

    def load_and_change(read: Path) -> list[Task]:
        found = load_tasks(read)
        read.write_text(read.read_text().replace('"a"', '"corrected"'))
        return found

    monkeypatch.setattr(evaluate, "load_tasks", load_and_change)
    with pytest.raises(ConfigError, match=r"questions\.jsonl changed while it was read"):
        evaluate.read_questions(path, None)
    with pytest.raises(ConfigError, match="can not be read"):
        evaluate.read_questions(tmp_path / "none.jsonl", None)
