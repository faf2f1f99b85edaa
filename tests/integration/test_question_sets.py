"""`s3-agent eval NAME` against a fake hub: fetched once, drawn by seed; texts that may not be published stay inside."""

import base64
import gzip
import json
import re
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from benchmarks.untrained_encoder import save_untrained_bert
from retrieval_server.backends.web.store import Store
from s3_agent.cli.main import app
from s3_agent.data.published.browsecomp_plus import CORPUS, KEY_VARIABLE
from s3_agent.data.published.canary import decrypted
from s3_agent.data.tasks import load_tasks, read_jsonl
from s3_agent.errors import S3AgentError
from s3_agent.evaluation.records import EvaluatedTask
from s3_agent.preparation.question_sets import prepare_set
from s3_agent.recipe import load_recipe
from s3_agent.testing.fake_hub import FakeHub, hub_app
from s3_agent.testing.fakes import FakeGenerator, FakeRetriever
from s3_agent.testing.servers import generator_app, retriever_app, serve
from s3_agent.types import Passage
from tests.published_files import ENCRYPTED, KEY, SECRET, fake_hub, secret_answer, secret_question, use_hub

DOCUMENT = Passage(id="1", title="Oslo", text="The mayor is M1.")
BROWSECOMP = "browsecomp_plus"


@dataclass
class World:
    """A fake hub, a generator that answers `answer`, and a recipe below `folder`."""

    folder: Path
    hub: FakeHub
    retriever: str
    generator: FakeGenerator
    arguments: list[str]

    def evaluate(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, ["eval", "--plain", *self.arguments, *arguments])

    def prepared(self, name: str) -> Path:
        return self.folder / "prepared" / "evaluation" / name

    def asked(self, name: str) -> list[str]:
        rows = read_jsonl(self.folder / "runs" / f"evaluation-tour-{name}" / "results.jsonl")
        return sorted({EvaluatedTask.model_validate(row).task.id for row in rows})


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    hub = fake_hub()
    generator = FakeGenerator(lambda question, context: f"I think, {secret_answer(3)}. [1007]")
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    recipe = tmp_path / "recipe.yaml"
    with ExitStack() as stack:
        use_hub(monkeypatch, stack.enter_context(serve(hub_app(hub))), tmp_path)
        retriever = stack.enter_context(serve(retriever_app(FakeRetriever({}, default=[DOCUMENT]))))
        generating = stack.enter_context(serve(generator_app(generator)))
        values = {
            "name": "tour",
            "runs": str(tmp_path / "runs"),
            "prepared": str(tmp_path / "prepared"),
            "policy": {"model": "x"},
            "data": dict.fromkeys(("corpus", "train", "validation"), str(tmp_path / "none")),
            "retriever": {"port": 0},
            "generator": {"model": "fake", "url": f"{generating}/v1", "context_tokens": 100000},
        }
        recipe.write_text(yaml.safe_dump(values))
        yield World(tmp_path, hub, retriever, generator, ["--recipe", str(recipe), "--agents", "rag,direct"])


def failure(result: Result) -> str:
    assert isinstance(result.exception, S3AgentError), result.output
    return f"{result.exception.message}. {result.exception.remedy}"


def test_a_named_set_is_fetched_once_and_the_same_questions_are_drawn(world: World) -> None:
    given = f"retriever.url={world.retriever}"
    done = world.evaluate("nq", given, "--questions", "7")
    assert done.exit_code == 0, done.output
    assert "7/7" in done.stdout and "rag" in done.stdout and "direct - rag" in done.stdout
    assert [path for path, _ in world.hub.sent] == ["nq/test.jsonl"]  # no training set, and no corpus
    tasks = [task.id for task in load_tasks(world.prepared("nq") / "questions" / "validation.jsonl")]
    drawn = world.asked("nq")
    assert len(tasks) == 40 and len(drawn) == 7 and drawn != sorted(tasks)[:7]
    data = json.loads((world.folder / "runs" / "evaluation-tour-nq" / "evaluation.json").read_text())["data"]
    assert (data["questions"], data["drawn"], data["draw_seed"], data["of"]) == (7, 7, 42, 40)

    world.hub.data_sets = {}  # the network is gone
    asked = len(world.generator.calls)
    again = world.evaluate("nq", given, "--questions", "7")
    assert (again.exit_code, again.stdout) == (0, done.stdout)
    assert len(world.hub.sent) == 1 and len(world.generator.calls) == asked
    assert world.evaluate("nq", given, "--questions", "7", "--questions-seed", "1").exit_code == 0
    assert world.asked("nq") != drawn
    assert world.evaluate("nq", given).exit_code == 0
    assert world.asked("nq") == sorted(tasks)  # of a set with fewer than 100 questions, all are asked


def test_the_embedded_set_needs_no_network(world: World) -> None:
    world.hub.data_sets = {}
    done = world.evaluate("embedded", "--questions", "4", "--agents", "rag")
    assert done.exit_code == 0, done.output
    assert len(world.asked("embedded")) == 4
    results = read_jsonl(world.folder / "runs" / "evaluation-tour-embedded" / "results.jsonl")
    assert all(row["episode"]["initial_passages"] for row in results)  # found by our server in the embedded corpus


def test_without_a_network_the_error_says_what_to_do(world: World) -> None:
    world.hub.data_sets = {}
    told = failure(world.evaluate("hotpotqa", f"retriever.url={world.retriever}"))
    assert "the data set hotpotqa is not prepared in" in told and "HF_ENDPOINT" in told
    assert "without a network: s3-agent eval embedded" in told


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["nqq"], "'nqq' is not an override (section.field=value), and there is no data set 'nqq'"),
        (["wiki-18"], "the data set wiki-18 has no questions"),
        (["nq", "hotpotqa"], "evaluate one at a time"),
        (["nq", "--data", "x.jsonl"], "leave one of them out"),
    ],
)
def test_what_can_not_be_evaluated_is_refused(world: World, arguments: list[str], wanted: str) -> None:
    assert wanted in failure(world.evaluate(*arguments))
    assert not world.hub.sent


def test_an_encrypted_set_needs_its_key_before_anything_is_fetched(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f"export {KEY_VARIABLE}=" in failure(world.evaluate(BROWSECOMP))
    assert not world.hub.sent
    monkeypatch.setenv(KEY_VARIABLE, "another key")
    told = failure(world.evaluate(BROWSECOMP, "--agents", "direct"))
    assert "can not be decrypted: the key is not the one" in told and SECRET not in told
    assert not (world.prepared(BROWSECOMP) / "questions" / "validation.jsonl").exists()


def written(folder: Path) -> str:
    """Everything in the files of a folder or in a file, decompressed where a report is."""
    texts = []
    for path in [folder] if folder.is_file() else sorted(one for one in folder.rglob("*") if one.is_file()):
        texts.append(path.read_text())
        for packed in re.findall(r'<script type="text/plain"[^>]*>([A-Za-z0-9+/=]+)<', texts[-1]):
            texts.append(gzip.decompress(base64.b64decode(packed)).decode())
    return "\n".join(texts)


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def evaluated(world: World) -> World:
    """BrowseComp-Plus's made-up set, found with BM25, answered, and judged by a model."""
    key_file = world.folder / "key"
    key_file.write_text(KEY + "\n")

    def judge(question: str, context: str) -> str:
        correct = "yes" if "number 3 " in question else "no"
        return f"extracted_final_answer: {secret_answer(3)}\ncorrect: {correct}\nconfidence: 90%"

    with serve(generator_app(FakeGenerator(judge))) as judging:
        overrides = ["judge.prompt=browsecomp_plus", f"judge.url={judging}/v1"]
        done = world.evaluate(BROWSECOMP, "--key-file", str(key_file), *overrides)
    assert done.exit_code == 0, done.output
    assert SECRET not in done.output and "may not be published" in done.output
    return world


def test_browsecomp_plus_from_the_encrypted_files_to_scores(evaluated: World, tmp_path: Path) -> None:
    folder = evaluated.prepared(BROWSECOMP)
    tasks = load_tasks(folder / "questions" / "validation.jsonl")
    assert [(task.id, task.question) for task in tasks] == [
        (str(number), secret_question(number)) for number in range(ENCRYPTED)
    ]
    assert all(task.protected == KEY and task.evidence for task in tasks)
    assert [(one.id, one.answer) for one in tasks[2].evidence or ()] == [("1004", False), ("1005", True)]
    corpus = read_jsonl(folder / "corpus.jsonl")
    assert corpus[1]["title"] == "Painting 0" and corpus[1]["text"].startswith(
        "---\nauthor: me\n---\nThe lighthouse 0."
    )
    assert f"{CORPUS}/data/train-00000-of-00001.parquet" in json.dumps(
        json.loads((folder / "manifests/download.json").read_text())
    )

    out = evaluated.folder / "runs" / "evaluation-tour-browsecomp_plus"
    for private in (folder, out):
        assert permissions(private) == 0o700 and (private / ".gitignore").read_text() == "*\n"
    assert permissions(folder / "questions" / "validation.jsonl") == 0o600

    exported = CliRunner().invoke(app, ["export", str(out), "--format", BROWSECOMP])
    assert exported.exit_code == 0, exported.output
    place = out / "export-browsecomp_plus" / "rag"
    assert len([*place.glob("run_*.json")]) == ENCRYPTED
    run = json.loads((place / "run_3.json").read_text())
    assert run["status"] == "completed" and {"1006", "1007"} & {*run["retrieved_docids"]}
    assert decrypted(run["result"][-1]["output"], KEY, place="") == f"I think, {secret_answer(3)}. [1007]"
    scored = json.loads((place / "scores.json").read_text())
    assert (scored["questions"], scored["accuracy"], scored["calibration_answers"]) == (12, 8.33, 12)
    assert scored["calibration_error"] == 81.67 and scored["recall"] > 0
    assert json.loads((place / "evaluation_summary.json").read_text())["Accuracy (%)"] == 8.33


def test_no_report_and_no_export_holds_a_protected_text(evaluated: World, tmp_path: Path) -> None:
    out = evaluated.folder / "runs" / "evaluation-tour-browsecomp_plus"
    assert SECRET in written(out / "results.jsonl") and "kingfisher" in written(
        out / "results.jsonl"
    )  # what is searched for
    run = CliRunner().invoke
    target = tmp_path / "published"
    for ending in ("html", "json", "md"):
        assert run(app, ["report", str(out), "-o", str(target / f"report.{ending}")]).exit_code == 0
        assert f"The texts of {ENCRYPTED} questions are withheld" in written(target / f"report.{ending}")
    assert run(app, ["export", str(out), "--format", BROWSECOMP, "-o", str(target / "runs")]).exit_code == 0
    assert run(app, ["export", str(out), "--format", "trec", "-o", str(target / "trec")]).exit_code == 0
    assert (target / "trec" / "qrels.txt").exists() and not (target / "trec" / "topics.tsv").exists()
    for form in ("s3", "search_r1"):
        told = failure(run(app, ["export", str(out), "--format", form, "-o", str(target / form)]))
        assert "may not be published in plain text" in told and SECRET not in told
    questions = str(evaluated.prepared(BROWSECOMP) / "questions" / "validation.jsonl")
    assert "--show-protected" in failure(run(app, ["data", "write", "rows", questions, str(target / "rows.parquet")]))
    found = written(target)
    assert SECRET not in found and "kingfisher" not in found and KEY not in found
    for name in ("table.json", "table.md", "evaluation.json"):
        assert SECRET not in written(out / name) and "kingfisher" not in written(out / name)
    logged = "".join(map(written, (evaluated.folder / "runs").rglob("*.log")))
    assert SECRET not in logged and "kingfisher" not in logged


def test_an_option_shows_them_to_their_owner_alone(evaluated: World, tmp_path: Path) -> None:
    out = evaluated.folder / "runs" / "evaluation-tour-browsecomp_plus"
    report, exported = tmp_path / "own.json", tmp_path / "own"
    run = CliRunner().invoke
    assert run(app, ["report", str(out), "-o", str(report), "--show-protected"]).exit_code == 0
    assert run(app, ["export", str(out), "-o", str(exported), "--show-protected"]).exit_code == 0
    for path in (report, exported):
        assert SECRET in written(path) and "kingfisher" in written(path)
        assert permissions(path) & 0o077 == 0


def test_an_encoder_of_the_users_indexes_the_corpus(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    encoder = world.folder / "encoder"
    save_untrained_bert(encoder, ["lighthouse", "keeper", "bird"], dimension=16, layers=1, heads=2, spread=0.5)
    recipe = load_recipe(world.arguments[1], ["retriever.index.kind=dense", f"retriever.index.encoder.model={encoder}"])
    said: list[str] = []
    prepared = prepare_set(recipe, BROWSECOMP, say=said.append)
    assert prepared.recipe.index_folder == world.prepared(BROWSECOMP) / "index-dense"
    manifest = json.loads((prepared.recipe.index_folder / "manifest.json").read_text())
    assert (manifest["passages"], manifest["backend"]) == (2 * ENCRYPTED + 2, "dense")
    assert [line.partition(":")[0] for line in said if "done" in line] == ["download", "questions", "corpus", "index"]


def test_with_web_search_the_corpus_of_a_set_is_neither_fetched_nor_measured(world: World) -> None:
    key_file = world.folder / "key"
    key_file.write_text(KEY + "\n")
    kept = world.folder / "web"
    store = Store(kept)
    store.keep("a", "{}", "{}", [])
    store.close()
    index = ["kind=web", "provider=serper", "results=20", "mode=replay_else_empty"]
    overrides = [f"retriever.folder={kept}", *(f"retriever.index.{one}" for one in index)]
    recipe = load_recipe(world.arguments[1], overrides)
    said: list[str] = []
    prepared = prepare_set(recipe, BROWSECOMP, key_file=key_file, say=said.append)
    assert prepared.recipe == recipe and prepared.recipe.index_folder == kept
    assert [line.partition(":")[0] for line in said if "done" in line] == ["download", "questions"]

    done = world.evaluate(BROWSECOMP, "--agents", "direct", "--key-file", str(key_file), *overrides)
    assert done.exit_code == 0, done.output
    out = world.folder / "runs" / "evaluation-tour-browsecomp_plus"
    evidence = json.loads((out / "evaluation.json").read_text())["data"]["evidence"]
    assert (evidence["questions"], evidence["left_out"], evidence["in_corpus"]) == (ENCRYPTED, 0, None)


@pytest.mark.parametrize(
    ("index", "told"),
    [
        (["rerank.style=cohere", "rerank.model=m", "rerank.url=http://127.0.0.1:1"], "`rerank.candidates` is 50"),
        (
            ["index.kind=hybrid", "index.parts.a.index.kind=bm25", "index.parts.b.index.kind=bm25", "index.depth=60"],
            "`depth` is 60",
        ),
        (["index.kind=web", "index.provider=serper", "index.results=20"], "more than the 20 `results`"),
    ],
    ids=lambda value: value[0].partition("=")[2] if isinstance(value, list) else "",
)
def test_more_passages_than_the_retriever_returns_are_refused_before_anything_starts(
    world: World, index: list[str], told: str
) -> None:
    overrides = [f"retriever.{one}" for one in index]
    refused = failure(world.evaluate("nq", "--agents", "direct,rag,retriever", *overrides))
    assert "the agent retriever asks for 100 passages at a time" in refused and told in refused
    assert "`agents.retriever.limits`" in refused
    assert not (world.folder / "runs").exists()
