"""`s3-agent eval` over fake services: table and files, resumption after `kill -9`, failures by boundary, exports."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException
from typer.testing import CliRunner, Result

from s3_agent.cli.main import app
from s3_agent.clients.tokenizer import load_tokenizer
from s3_agent.data.tasks import read_jsonl
from s3_agent.embedded import NANO_POLICY
from s3_agent.errors import GeneratorError, LaunchError
from s3_agent.evaluation.job import services_id
from s3_agent.evaluation.records import EvaluatedTask, EvaluationSetting
from s3_agent.processes.stack import MARKER, Part, Stack
from s3_agent.testing.fakes import FakeGenerator, FakePolicy, FakeRetriever
from s3_agent.testing.servers import generator_app, policy_app, retriever_app, serve
from s3_agent.types import Passage
from tests.pool_harness import until

QUESTIONS = 24
WITHIN_S = 60
AGENTS = "s3,search_r1,search_r1:ret"


def number_of(text: str) -> int:
    """Which question is asked in a prompt."""
    return int(text.partition("country number ")[2].partition("?")[0])


class Story:
    """What the fakes do, question by question, always alike. `hold_after` episodes the policy waits to be released."""

    def __init__(self) -> None:
        self.hold_after: int | None = None
        self.holding, self.released = threading.Event(), threading.Event()
        self.broken = False
        self.policy_calls = 0

    def respond(self, prompt: str) -> str:
        self.policy_calls += 1
        if self.hold_after is not None and self.policy_calls > self.hold_after:
            self.holding.set()
            self.released.wait(WITHIN_S)
        number, s3 = number_of(prompt), "<question>" in prompt
        if prompt.count("</information>") > s3 or number % 3 == 0:
            return (
                "<important_info>[1]</important_info><search_complete>True</search_complete>"
                if s3
                else f"<answer>city {number if number % 4 else 'unknown'}</answer>"
            )
        query = f"capital of country number {number}?"
        return f'<query>{{"query": "{query}"}}</query>' if s3 else f"<search>{query}</search>"

    def answer(self, question: str, context: str) -> str:
        if self.broken and number_of(question) % 2:
            raise GeneratorError("the model crashed")
        return context.partition("capital: ")[2].partition(";")[0] or "no idea"


class Retriever(FakeRetriever):
    """A query of the question itself finds the passage of every third country alone; other queries find it always."""

    async def retrieve(self, query: str, *, topk: int) -> tuple[Passage, ...]:
        self.queries.append((query, topk))
        number = number_of(query)
        known = query.startswith("capital") or number % 3 == 0
        text = f"capital: city {number};" if known else "nothing is known"
        return (Passage(id=str(number), title=f"country number {number}?", text=text),)


@dataclass
class Running:
    """The services' fakes and how to evaluate with them."""

    folder: Path
    story: Story
    policy: FakePolicy
    retriever: FakeRetriever
    generator: FakeGenerator
    arguments: list[str] = field(default_factory=list)

    def evaluate(self, *options: str, out: str = "out") -> Result:
        return CliRunner().invoke(app, ["eval", "--out", str(self.folder / out), *self.arguments, *options])

    def start(self, *options: str, out: str = "out") -> subprocess.Popen[bytes]:
        """The same in a process of its own, which can be killed."""
        command = [sys.executable, "-m", "s3_agent.cli", "eval", "--out", str(self.folder / out)]
        return subprocess.Popen(
            [*command, *self.arguments, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def results(self, out: str = "out") -> list[EvaluatedTask]:
        return [EvaluatedTask.model_validate(row) for row in read_jsonl(self.folder / out / "results.jsonl")]

    def table(self, out: str = "out") -> dict[str, Any]:
        return json.loads((self.folder / out / "table.json").read_text())

    def calls(self) -> tuple[int, int, int]:
        return len(self.policy.prompts), len(self.retriever.queries), len(self.generator.calls)


def numbers(results: list[EvaluatedTask]) -> dict[tuple[str, str, int], Any]:
    """All that must not depend on when and how often the evaluation was started."""
    return {(one.agent, one.task.id, one.sample): one.model_dump(mode="json", exclude={"timings"}) for one in results}


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    story = Story()
    policy = FakePolicy(story.respond, load_tokenizer(str(NANO_POLICY)))
    retriever, generator = Retriever(), FakeGenerator(story.answer)
    data = tmp_path / "questions.jsonl"
    rows = (
        {
            "id": f"q{number}",
            "question": f"What is the capital of country number {number}?",
            "golden_answers": [f"city {number}"],
            "data_source": "even" if number % 2 == 0 else "odd",
        }
        for number in range(QUESTIONS)
    )
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (
        serve(policy_app(policy)) as policy_url,
        serve(retriever_app(retriever)) as retriever_url,
        serve(generator_app(generator)) as generator_url,
    ):
        arguments = [
            *("--data", str(data), "--agents", AGENTS, "--concurrency", "4", "--plain"),
            *("--policy", f"s3={policy_url}/v1,search_r1={policy_url}/v1"),
            *(f"retriever.url={retriever_url}", f"generator.url={generator_url}/v1", "generator.patience_s=0.1"),
            f"policies.search_r1.model={NANO_POLICY}",  # the fake policy server does not say whose tokenizer it has
        ]
        yield Running(tmp_path, story, policy, retriever, generator, arguments)
        story.released.set()


def test_all_agents_on_the_same_questions_and_again_at_once(running: Running) -> None:
    done = running.evaluate()
    assert done.exit_code == 0, done.output
    results = running.results()
    assert len(results) == 3 * QUESTIONS
    by_agent = {agent["agent"]: agent for agent in running.table()["agents"]}
    assert [*by_agent] == AGENTS.split(",")
    # s3 selects what holds the answer; Search-R1 forgets every fourth answer, and not the generator that reads for it.
    measured = {name: agent["overall"]["gen_acc"]["mean"] for name, agent in by_agent.items()}
    assert measured == {"s3": 1.0, "search_r1": 0.75, "search_r1:ret": pytest.approx(2 / 3)}
    assert by_agent["s3"]["overall"]["searches"]["mean"] == pytest.approx(2 / 3)
    assert set(by_agent["s3"]["sources"]) == {"even", "odd"}
    for text in ("24/24", "macro average", "search_r1 - s3", "1.000 ["):
        assert text in done.stdout
    one = next(result for result in results if (result.agent, result.task.id) == ("s3", "q1"))
    assert (one.answer, one.recall_by_turn, one.counts["turns"]) == ("city 1", (False, True), 2)
    assert [passage.id for passage in one.shown] == ["1"]
    setting = EvaluationSetting.model_validate_json((running.folder / "out" / "evaluation.json").read_text())
    assert setting.agents["s3"]["sampling"] == {"temperature": 0.6, "top_p": 0.95}
    assert setting.agents["search_r1:ret"]["answers"] == "generator"
    assert setting.data["questions"] == QUESTIONS

    before, files = running.calls(), (running.folder / "out" / "results.jsonl").stat().st_mtime_ns
    again = running.evaluate()
    assert (again.exit_code, again.stdout) == (0, done.stdout)
    assert (running.calls(), (running.folder / "out" / "results.jsonl").stat().st_mtime_ns) == (before, files)


@pytest.mark.parametrize("samples", [1, 3])
def test_killed_half_way_it_resumes_to_the_same_numbers(running: Running, samples: int) -> None:
    options = ("--samples", str(samples))
    assert running.evaluate(*options, out="whole").exit_code == 0
    whole = running.calls()
    running.story.hold_after = running.story.policy_calls + whole[0] // 2
    killed = running.start(*options)
    assert running.story.holding.wait(WITHIN_S)
    kept = running.folder / "out" / "stages" / "answers.jsonl"
    until(lambda: kept.exists() and kept.read_bytes().count(b"\n") > 2)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    mark = {MARKER: services_id(running.folder / "out")}
    left = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={**os.environ, **mark})
    running.story.hold_after = None
    running.story.released.set()
    assert not (running.folder / "out" / "results.jsonl").exists()
    with (running.folder / "out" / "stages" / "episodes.jsonl").open("ab") as file:
        file.write(b'{"key":"0123')  # as a kill in the middle of a write leaves it
    before = running.calls()
    resumed = running.evaluate(*options)
    assert resumed.exit_code == 0, resumed.output
    left.wait(WITHIN_S)  # a service that the killed one had started was stopped
    left.communicate()
    new = [after - then for after, then in zip(running.calls(), before, strict=True)]
    assert 0 < new[0] < whole[0] and new[2] < whole[2]
    assert numbers(running.results()) == numbers(running.results("whole"))
    assert len(running.results()) == 3 * QUESTIONS * samples
    agents = [
        [{**agent, "overall": {**agent["overall"], "seconds": None}} for agent in running.table(out)["agents"]]
        for out in ("out", "whole")
    ]
    for agent in (*agents[0], *agents[1]):
        for part in (agent["macro"], *agent["sources"].values()):
            part.pop("seconds")
    assert agents[0] == agents[1]
    assert running.table()["differences"] == running.table("whole")["differences"]


def test_more_samples_continue_from_those_that_are_there(running: Running) -> None:
    def sampled(agent: dict[str, Any]) -> dict[str, tuple[float, int]]:
        return {name: (one["mean"], one["n"]) for name, one in agent["overall"].items() if "@" in name}

    assert running.evaluate().exit_code == 0
    before = len(running.policy.prompts)
    done = running.evaluate("--samples", "4")
    assert done.exit_code == 0, done.output
    assert len(running.policy.prompts) - before == 3 * before
    agents = {agent["agent"]: agent for agent in running.table()["agents"]}
    assert [agents[name]["samples"] for name in ("s3", "search_r1")] == [4, 4]
    right = {"s3": 1.0, "search_r1": 0.75}  # the fake policy says the same each time
    for name, share in right.items():
        assert sampled(agents[name]) == {
            key: (pytest.approx(share), QUESTIONS) for key in ("avg@4", "pass@2", "pass@4", "majority@4")
        }
    assert "pass@4" in done.stdout and "96/24x4" in done.stdout
    mixed = running.evaluate("--samples", "2", "--agents", "s3,rag", out="mixed")
    assert mixed.exit_code == 0, mixed.output
    assert [agent["samples"] for agent in running.table("mixed")["agents"]] == [2, 1]
    form = CliRunner().invoke(app, ["export", str(running.folder / "mixed"), "--format", "trec"])
    assert form.exit_code == 0, form.output
    assert (running.folder / "mixed/export-trec/s3/sample-2/search-1.run").is_file()
    assert (running.folder / "mixed/export-trec/rag/retrieved.run").is_file()


def test_an_index_is_measured_by_itself_with_topics_and_qrels(running: Running) -> None:
    folder = running.folder
    (folder / "topics.tsv").write_text(
        "".join(f"t{number}\tWhat is the capital of country number {number}?\n" for number in range(6))
    )
    # The fake retriever finds each country by its number; for two of them another document is needed, too.
    (folder / "qrels").write_text(
        "".join(f"t{n} 0 {n} 1\n" for n in range(5)) + "t0 0 other 2\nt1 0 other 1\nt2 0 5 0\n"
    )
    read = ["data", "read", "topics", str(folder / "topics.tsv"), str(folder / "tasks.jsonl")]
    refused = CliRunner().invoke(app, read)
    assert "give --qrels FILE" in str(refused.exception)
    made = CliRunner().invoke(app, [*read, "--qrels", str(folder / "qrels")])
    assert made.exit_code == 0 and "5 tasks" in made.output and "1 topics have no relevant document" in made.output

    arguments = ("--data", str(folder / "tasks.jsonl"))
    before = running.calls()
    done = running.evaluate("--agents", "retriever", *arguments)
    assert done.exit_code == 0, done.output
    policy, retriever, generator = (now - then for now, then in zip(running.calls(), before, strict=True))
    assert (policy, retriever, generator) == (0, 5, 0)
    [agent] = running.table()["agents"]
    overall = {name: one["mean"] for name, one in agent["overall"].items()}
    assert "gen_acc" not in overall and "answer_recall" not in overall
    assert overall["evidence_retrieved_recall"] == pytest.approx((0.5 + 0.5 + 1 + 1 + 1) / 5)
    assert overall["evidence_retrieved_mrr"] == 1.0
    assert "Evidence (the corpus was not searched for the gold documents)" in done.stdout
    exported = CliRunner().invoke(app, ["export", str(folder / "out"), "--format", "trec"])
    assert exported.exit_code == 0, exported.output
    run = (folder / "out/export-trec/retriever/retrieved.run").read_text().splitlines()
    assert sorted(run)[0] == "t0 Q0 0 1 1 retriever"
    assert (folder / "out/export-trec/qrels.txt").read_text().splitlines()[:2] == ["t0 0 0 1", "t0 0 other 2"]

    # An agent whose generator would answer has nothing to compare an answer with.
    before = running.calls()
    agents = running.evaluate("--agents", "s3", *arguments, out="agents")
    assert agents.exit_code == 0, agents.output
    assert running.calls()[2] == before[2]
    [agent] = running.table("agents")["agents"]
    assert "gen_acc" not in agent["overall"] and agent["overall"]["evidence_handed_on_recall"]["n"] == 5
    report = CliRunner().invoke(app, ["report", str(folder / "agents"), "-o", str(folder / "report.json")])
    assert report.exit_code == 0, report.output
    assert {row["outcome"] for row in json.loads((folder / "report.json").read_text())["episodes"]} == {"unscored"}
    for name in ("s3", "search_r1"):
        assert CliRunner().invoke(app, ["export", str(folder / "agents"), "--format", name]).exit_code == 0


def test_what_fails_is_missing_with_its_boundary_and_tried_again(running: Running) -> None:
    running.story.broken = True
    done = running.evaluate()
    assert done.exit_code == 1
    assert "12/24 (12 generator)" in done.stdout
    agents = {agent["agent"]: agent for agent in running.table()["agents"]}
    assert agents["s3"]["failed"] == agents["search_r1:ret"]["failed"] == {"generator": QUESTIONS // 2}
    assert agents["s3"]["overall"]["gen_acc"] == {**agents["s3"]["overall"]["gen_acc"], "mean": 1.0, "n": 12}
    compared = {(one["first"], one["second"]): one["n"] for one in running.table()["differences"]}
    assert compared["s3", "search_r1"] == QUESTIONS // 2
    running.story.broken = False
    before = running.calls()
    assert running.evaluate().exit_code == 0
    assert running.calls()[:2] == before[:2]  # no episode is played again
    assert all(result.state == "done" for result in running.results())


def test_an_agent_whose_policy_refuses_everything_is_given_up(running: Running) -> None:
    refusing, asked = FastAPI(), 0

    @refusing.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"data": [{"id": "refusing"}]}

    @refusing.post("/v1/completions")
    async def completions() -> None:
        nonlocal asked
        asked += 1
        raise HTTPException(400, detail="no")

    at = running.arguments.index("--policy") + 1
    with serve(refusing) as url:
        running.arguments[at] = running.arguments[at].replace(running.arguments[at].split(",")[0], f"s3={url}/v1")
        done = running.evaluate()
    assert done.exit_code == 1
    assert 8 <= asked < QUESTIONS
    agents = {agent["agent"]: agent["failed"] for agent in running.table()["agents"]}
    assert agents == {"s3": {"policy": QUESTIONS}, "search_r1": {}, "search_r1:ret": {}}
    assert "0/24 (24 policy)" in done.stdout


def test_another_seed_or_sampling_is_played_anew(running: Running) -> None:
    few = ("--limit", "3", "--agents", "s3")
    calls = []
    for options in (few, few, (*few, "seed=1"), (*few, "--sampling", "greedy"), (*few, "agent.limits.topk=2")):
        before = running.calls()[0]
        assert running.evaluate(*options).exit_code == 0
        calls.append(running.calls()[0] - before)
    assert calls[1] == 0
    assert all(calls[index] == calls[0] > 0 for index in (2, 3, 4))


def test_what_can_not_be_evaluated_says_what_to_do(running: Running) -> None:
    for options, message in (
        (("--agents", "s4"), "there is no agent 's4'"),
        (("--agents", "s3,s3"), "named twice"),
        (("--agents", "s3:own"), "s3:ret or s3:self"),
        (("--agents", "s3:self"), "answers must be `generator`"),
        (("--samples", "2", "--sampling", "greedy"), "would be equal"),
        (("--samples", "2", "--agents", "rag,retriever"), "would be equal"),
        (("--agents", "retriever:ret"), "answers must be `nobody`"),
        (("--policy", "s3"), "can not be read"),
        (("--policy", "s4=http://127.0.0.1:1"), "no such agent"),
        (("--data", str(running.folder / "none.jsonl")), "can not be read"),
        (("--run", str(running.folder)), "no trained policy"),
    ):
        assert message in str(running.evaluate(*options).exception), options


def test_the_published_shapes(running: Running) -> None:
    assert running.evaluate().exit_code == 0
    folder = running.folder / "out"
    for form in ("s3", "search_r1"):
        done = CliRunner().invoke(app, ["export", str(folder), "--format", form])
        assert done.exit_code == 0, done.output
    question = "What is the capital of country number 1?"

    def read(*parts: str) -> Any:
        return json.loads(folder.joinpath(*parts).read_text())

    sequence = read("export-s3", "s3", "odd_output_sequences.json")[question]
    assert sequence["golden_answers"] == ["city 1"]
    assert sequence["context_with_info"] == "Doc 1 (Title: country number 1?)\ncapital: city 1;\n\n"
    assert sequence["response_str"].startswith('<query>{"query"') and "</information>" in sequence["response_str"]
    assert read("export-s3", "s3", "results.json")["odd"][question] == {"answer": "city 1", "score": 1, "em_score": 1}
    stats = read("export-s3", "search_r1", "results_stats.json")
    assert (stats["total_questions"], stats["processed_questions"], stats["remaining_questions"]) == (24, 24, 0)
    assert stats["data_source_stats"]["odd"] == {
        **{"total": 12, "correct": 12, "accuracy": 1.0, "no_context": 4, "em_correct": 12, "em_accuracy": 1.0}
    }
    assert read("export-search_r1", "search_r1", "eval_only_r1.json")["overall"] == {
        **{"total": 24, "correct": 18, "accuracy": 0.75, "em_correct": 18, "em_accuracy": 0.75}
    }


def test_a_service_that_dies_ends_the_evaluation_at_once_and_is_named(tmp_path: Path) -> None:
    ended = asyncio.Event()

    async def waiting_for_an_answer() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    dying = Part(name="policy-1", command=["sh", "-c", "sleep 1; exit 3"], log=tmp_path / "policy-1.log")
    with Stack([dying], run_id=f"dying-{tmp_path.name}") as stack:
        stack.run()
        with pytest.raises(LaunchError, match="policy-1 ended with exit code 3"):
            asyncio.run(stack.while_alive(waiting_for_an_answer()))
    assert ended.is_set()


def test_work_that_ends_first_leaves_the_services_running(tmp_path: Path) -> None:
    living = Part(name="policy-1", command=["sleep", "60"], log=tmp_path / "policy-1.log")
    with Stack([living], run_id=f"living-{tmp_path.name}") as stack:
        stack.run()
        asyncio.run(stack.while_alive(asyncio.sleep(0)))
        assert not stack.ended_well()
