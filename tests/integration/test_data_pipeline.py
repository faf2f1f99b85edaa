"""The whole data pipeline against a fake hub: every kind of fault, and ten kills, after which all is byte-identical."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from s3_agent.data.tasks import load_tasks, read_jsonl
from s3_agent.errors import DataError, RagCacheError, S3AgentError
from s3_agent.recipe import load_recipe
from s3_agent.testing.fake_hub import FakeHub, hub_app
from s3_agent.testing.fakes import FakeGenerator, FakeRetriever
from s3_agent.testing.servers import generator_app, retriever_app, serve
from s3_agent.types import Passage
from tests.published_files import PASSAGES, QUESTIONS, city, fake_hub, hub_at, use_hub, wiki

spawning = multiprocessing.get_context("forkserver")
spawning.set_forkserver_preload(["s3_agent.preparation.stages", "retrieval_server.indexing.command", "huggingface_hub"])


class Finder(FakeRetriever):
    """Finds the passage of the city that a question names."""

    async def retrieve(self, query: str, *, topk: int) -> tuple[Passage, ...]:
        found = [number for number in range(PASSAGES) if f" {city(number)} " in query] + [0, 1, 2]
        rows = [wiki()[number] for number in found[:topk]]
        passages = [row["contents"].partition("\n") for row in rows]
        return tuple(
            Passage(id=row["id"], title=title.strip('"'), text=text)
            for row, (title, _, text) in zip(rows, passages, strict=True)
        )


@dataclass
class World:
    """A fake hub, a retriever and a generator, and where a recipe that uses them is."""

    hub: FakeHub
    url: str
    generator: FakeGenerator
    recipe: Path
    base: list[str]

    def overrides(self, folder: Path) -> list[str]:
        """All below one folder."""
        files = {"corpus": "corpus.jsonl", "train": "questions/train.jsonl"}
        files |= {"validation": "questions/validation.jsonl", "rag_cache": "rag_cache.json"}
        return [
            *self.base,
            *(f"data.{name}={folder / file}" for name, file in files.items()),
            f"data.folder={folder}",
            f"prepared={folder}",
        ]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    hub, generator = fake_hub(), FakeGenerator(lambda question, context: context)
    with ExitStack() as stack:
        url = stack.enter_context(serve(hub_app(hub)))
        retriever = stack.enter_context(serve(retriever_app(Finder())))
        answering = stack.enter_context(serve(generator_app(generator)))
        use_hub(monkeypatch, url, tmp_path)
        recipe = tmp_path / "recipe.yaml"
        places = dict.fromkeys(("corpus", "train", "validation", "rag_cache"), "x")
        sources = {"train": ["nq", "hotpotqa"], "test": ["nq", "hotpotqa", "medqa"], "github_raw": f"{url}/raw"}
        recipe.write_text(
            yaml.safe_dump(
                {
                    "name": "test",
                    "policy": {"model": "x"},
                    "data": {**places, "sources": {**sources, "sample": 30}},
                    "generator": {"model": "fake", "context_tokens": 100000},
                }
            )
        )
        base = [f"retriever.url={retriever}", f"generator.url={answering}/v1"]
        yield World(hub=hub, url=url, generator=generator, recipe=recipe, base=base)


def prepare(world: World, folder: Path, *overrides: str, wanted: str = "all", **options: Any) -> list[str]:
    """Run the stages; what was said."""
    from s3_agent.data.files.stages import Ledger, run_stages
    from s3_agent.preparation.stages import DataStages

    recipe = load_recipe(str(world.recipe), [*world.overrides(folder), *overrides])
    said: list[str] = []
    ledger = Ledger(recipe.data_folder)
    stages = DataStages(recipe, ledger).all()
    chosen = [stage for stage in stages if wanted in ("all", stage.name)]
    run_stages(ledger, chosen, say=said.append, **{"dry_run": False, **options})
    return said


def manifests(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "manifests").glob("*.json") if path.name != "seen.json"}


def test_from_nothing_to_a_training_set_and_a_second_run_does_nothing(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    said = prepare(world, folder)
    assert [line.partition(":")[0] for line in said] == [
        "disk",
        *("download", "corpus", "index", "questions", "retrieve", "rag-cache", "tasks"),
    ]
    assert [row["contents"] for row in read_jsonl(folder / "corpus.jsonl")] == [row["contents"] for row in wiki()]
    train = load_tasks(folder / "questions/train.jsonl")
    assert len(train) == QUESTIONS + 20 and train[0].id == "nq/train_0"
    kept = load_tasks(folder / "tasks/train.jsonl")
    # Naive RAG finds the answers that a passage holds: every third question has none.
    assert [task.id for task in kept] == [task.id for task in train if int(task.id.rpartition("_")[2]) % 3 == 0]
    assert kept[0].rag_score == 0 and kept[0].initial_passages and len(kept[0].initial_passages) == 3
    told = json.loads((folder / "manifests/tasks.json").read_text())["told"]
    assert told["train"] == len(kept) and told["candidates"] == len(train)
    assert told["reasons"]["solved by naive RAG"]["count"] == len(train) - len(kept)
    # nq's 40 test rows are sampled, of hotpotqa the dev set, of medqa all.
    assert len(load_tasks(folder / "questions/test.jsonl")) == 40 + 10 + 8
    assert len(load_tasks(folder / "questions/validation.jsonl")) == 30 + 10 + 8

    before, asked, fetched = manifests(folder), len(world.generator.calls), len(world.hub.sent)
    again = prepare(world, folder)
    assert all(": nothing to do (" in line for line in again) and len(again) == 7
    assert manifests(folder) == before
    assert (len(world.generator.calls), len(world.hub.sent)) == (asked, fetched)


def _child(recipe: str, overrides: list[str], url: str, cache: str, events: int | None) -> None:
    import huggingface_hub.constants as constants

    import s3_agent.data.published.fetching as fetching
    from s3_agent.data.files.stages import Ledger, run_stages
    from s3_agent.preparation.stages import DataStages

    for place, value in hub_at(url).items():
        module, name = place.split(".")
        setattr(import_module(f"huggingface_hub.{module}"), name, value)
    constants.HF_HUB_CACHE, fetching.WAIT_S = cache, 0.0
    resolved = load_recipe(recipe, overrides)
    count = 0

    def audit(event: str, _: tuple[Any, ...]) -> None:
        nonlocal count
        if event.startswith(("open", "os.", "socket.")):
            count += 1
            if count == events:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)
    ledger = Ledger(resolved.data_folder)
    run_stages(ledger, DataStages(resolved, ledger).all(), say=lambda _: None, dry_run=False)
    Path(cache, "events").write_text(str(count))


@pytest.mark.timeout(400)
def test_ten_kills_change_nothing(world: World, tmp_path: Path) -> None:
    """Killed at random system calls and at random moments, and resumed: the manifests of an undisturbed run."""
    world.hub.block, world.hub.pause_s = 1024, 0.001  # so that a kill can come in the middle of a file
    chance = random.Random(20)

    def start(folder: Path, events: int | None) -> Any:
        cache = str(folder / "hf")
        arguments = (str(world.recipe), world.overrides(folder / "data"), world.url, cache, events)
        process = spawning.Process(target=_child, args=arguments)
        process.start()
        return process

    began = time.monotonic()
    whole = start(tmp_path / "whole", None)
    whole.join()
    duration = time.monotonic() - began
    assert whole.exitcode == 0
    events = int((tmp_path / "whole/hf/events").read_text())

    kills, landed = 0, list[list[str]]()
    folder = tmp_path / "killed0"
    for number in range(40):
        by_event = number % 3 != 0
        process = start(folder, chance.randint(1, events) if by_event else None)
        process.join(None if by_event else chance.uniform(0.0, 1.0) * duration)
        if process.is_alive():
            process.kill()
            process.join()
        if process.exitcode == -signal.SIGKILL:
            kills += 1
            landed.append(sorted(manifests(folder / "data")))
        if kills >= 10 and len({len(done) for done in landed}) > 2:
            break
        if process.exitcode == 0:
            assert manifests(folder / "data") == manifests(tmp_path / "whole/data")
            folder = tmp_path / f"killed{number}"
    assert kills >= 10, landed
    assert len({len(done) for done in landed}) > 2, f"kills must come in different stages, these came after {landed}"
    last = start(folder, None)
    last.join()
    assert last.exitcode == 0
    assert manifests(folder / "data") == manifests(tmp_path / "whole/data")
    assert not list(folder.rglob("*.partial*")), "nothing half is left"
    assert prepare_says_done(world, folder / "data", folder / "hf")


def prepare_says_done(world: World, folder: Path, cache: Path) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        return all("nothing to do" in line for line in prepare(world, folder))


def test_a_dry_run_tells_sizes_and_fetches_nothing(world: World, tmp_path: Path) -> None:
    said = prepare(world, tmp_path / "data", dry_run=True)
    assert said[0].startswith("download: to do (not done); downloads ") and "kB" in said[0]
    assert any(line.startswith("disk: ") and "are free" in line for line in said)
    assert world.hub.sent == []
    assert not (tmp_path / "data/corpus.jsonl").exists()


def test_a_dry_run_without_a_network_shows_what_is_known(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = dict(world.hub.data_sets)
    world.hub.data_sets = {name: files for name, files in hidden.items() if name != FLASHRAG}
    said = prepare(world, tmp_path / "data", dry_run=True)
    assert said[0].startswith("download: to do (not done); downloads at least ") and "kB" in said[0]
    assert said[1].startswith(f"download: the size of {FLASHRAG} is not known: the data set {FLASHRAG} can not be")
    assert any(line.startswith("corpus: to do") and "at least" not in line and "kB" in line for line in said)
    for name, value in hub_at("http://127.0.0.1:9").items():
        monkeypatch.setattr(f"huggingface_hub.{name}", value, raising=False)
    said = prepare(world, tmp_path / "data", dry_run=True)
    unknown = [line for line in said if "is not known: http://127.0.0.1:9 does not answer" in line]
    assert len(unknown) == 3 and unknown[-1].startswith("corpus: the size of PeterJinGo/wiki-18-corpus is not known")
    assert any(line.startswith("tasks: to do") for line in said), "the stages behind are shown as well"
    with pytest.raises(DataError, match="does not answer"):
        prepare(world, tmp_path / "data")


def test_too_small_a_disk_is_told_before_anything_is_fetched(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    with pytest.raises(DataError, match=r"1\.0 kB free, .* needed") as caught:
        prepare(world, tmp_path / "data")
    assert "HF_HOME" in caught.value.remedy and world.hub.sent == []


CORPUS = "wiki-18.jsonl.gz"


def test_a_cut_download_goes_on_where_it_was(world: World, tmp_path: Path) -> None:
    world.hub.cut[CORPUS] = 2
    prepare(world, tmp_path / "data", wanted="download")
    starts = [start for path, start in world.hub.sent if path == CORPUS]
    assert len(starts) == 3 and starts[0] == 0 and 0 < starts[1] < starts[2]


def test_a_server_that_hangs_up_for_good_is_an_error_that_loses_nothing(world: World, tmp_path: Path) -> None:
    world.hub.busy[CORPUS] = 99
    with pytest.raises(DataError, match=r"wiki-18\.jsonl\.gz could not be fetched.*503"):
        prepare(world, tmp_path / "data", wanted="download")
    world.hub.busy.clear()
    fetched = {path for path, _ in world.hub.sent}
    world.hub.sent.clear()
    prepare(world, tmp_path / "data", wanted="download")
    assert fetched.isdisjoint({path for path, _ in world.hub.sent}), "what was there was not fetched again"


def test_a_corrupt_download_is_fetched_again(world: World, tmp_path: Path) -> None:
    world.hub.spoil[CORPUS] = 1
    prepare(world, tmp_path / "data", wanted="download")
    assert [path for path, _ in world.hub.sent].count(CORPUS) == 2


@pytest.mark.parametrize("path", [CORPUS, "nq/train.jsonl"], ids=["in LFS", "in git"])
def test_a_mirror_that_changes_files_is_refused(world: World, tmp_path: Path, path: str) -> None:
    world.hub.spoil[path] = 99
    with pytest.raises(DataError, match=rf"{path} arrived with the hash .*, but .* was published"):
        prepare(world, tmp_path / "data", wanted="download")
    assert "download.json" not in manifests(tmp_path / "data")


def test_a_refused_file_says_what_to_do(world: World, tmp_path: Path) -> None:
    world.hub.refuse[CORPUS] = 1
    with pytest.raises(DataError, match="refused with status 403") as caught:
        prepare(world, tmp_path / "data", wanted="download")
    assert "HF_TOKEN" in caught.value.remedy


def test_tokens_reach_the_hub(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world.hub.token = "secret"
    with pytest.raises(DataError, match="can not be listed"):
        prepare(world, tmp_path / "data", wanted="download")
    monkeypatch.setenv("HF_TOKEN", "secret")
    prepare(world, tmp_path / "data", wanted="download")


def test_offline_the_cache_is_enough_and_a_missing_file_is_named(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(world, tmp_path / "data", wanted="download")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "nothing to do" in prepare(world, tmp_path / "data", wanted="download")[0]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(DataError, match="HF_HUB_OFFLINE"):
        prepare(world, tmp_path / "other", wanted="download")


def change(hub: FakeHub, repo: str, path: str, content: bytes) -> None:
    hub.data_sets = {**hub.data_sets, repo: {**hub.data_sets[repo], path: content}}


FLASHRAG = "RUC-NLPIR/FlashRAG_datasets"


@pytest.mark.parametrize(
    ("repo", "path", "content", "error"),
    [
        (
            FLASHRAG,
            "nq/train.jsonl",
            b'{"id": "0", "question": "q", "golden_answers": ["a"]}\n{"id":',
            r"train\.jsonl:2 ",
        ),
        (
            FLASHRAG,
            "nq/train.jsonl",
            b'\n{"id": "0", "text": "q"}\n',
            r"train\.jsonl:2 is not a question: it lacks a question and golds",
        ),
        ("PeterJinGo/wiki-18-corpus", CORPUS, b"not gzip", r"wiki-18\.jsonl\.gz can not be read"),
    ],
    ids=["bad JSON", "wrong schema", "not gzip"],
)
def test_wrong_files_are_named_with_their_line(
    world: World, tmp_path: Path, repo: str, path: str, content: bytes, error: str
) -> None:
    change(world.hub, repo, path, content)
    with pytest.raises(DataError, match=error):
        prepare(world, tmp_path / "data")
    assert "download.json" in manifests(tmp_path / "data"), "what was done is kept"


def test_a_raw_file_that_is_not_json_is_refused_and_fetched_anew(world: World, tmp_path: Path) -> None:
    good = dict(world.hub.raw)
    world.hub.raw = dict.fromkeys(good, b'{"medqa": ')
    with pytest.raises(DataError, match=r"benchmark\.json is not JSON"):
        prepare(world, tmp_path / "data", wanted="download")
    world.hub.raw = good
    prepare(world, tmp_path / "data", wanted="download")


def test_the_embedded_default_is_ready_in_seconds_and_then_does_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "s3_agent.cli", "data", "all", "--recipe", "cpu", f"prepared={tmp_path}"]
    first = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    # The shipped RAG cache fits: the generator is not started.
    assert "rag-cache: done (questions 1240, naive rag accuracy 0.325, fingerprint" in first
    assert "tasks: done (candidates 1000, train 680, validation 240, dropped 320 solved by naive RAG)" in first
    index = tmp_path / "index/corpus/manifest.json"
    built = index.stat().st_mtime_ns
    (tmp_path / "data/cpu/manifests/index.json").unlink()
    assert "index: done" in subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert index.stat().st_mtime_ns == built, "an index that fits is not built again"
    second = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "everything is up to date; no work was done" in second and ": done" not in second


def test_the_worked_example_leaves_questions_to_train_on(tmp_path: Path) -> None:
    """The commands of examples/s3/custom_corpus, our own retriever included; the generator alone is a fake."""
    example, into = Path(__file__).parents[2] / "examples/s3/custom_corpus", tmp_path / "skerries"
    data = [sys.executable, "-m", "s3_agent.cli", "data"]
    files = ["--corpus", str(example / "documents"), "--questions", str(example / "questions.jsonl")]
    subprocess.run([*data, "import", *files, "--into", str(into)], capture_output=True, check=True)
    generator = FakeGenerator(lambda question, context: context)
    with serve(generator_app(generator, context_tokens=100_000)) as url:
        command = [*data, "all", "--recipe", str(into / "recipe.yaml"), f"generator.url={url}/v1"]
        subprocess.run(command, capture_output=True, text=True, check=True)
    assert {row["id"] for row in read_jsonl(into / "corpus.jsonl")} >= {
        "arnholm.md",
        "timetable.pdf",
        "ferries/sild.txt",
    }
    told = json.loads((into / "manifests/tasks.json").read_text())["told"]
    assert told["candidates"] == 58 and told["train"] >= 8, "a training step takes eight questions"


def test_an_edited_output_is_made_again_and_so_is_what_follows(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    prepare(world, folder)
    before = manifests(folder)
    with (folder / "retrieved.jsonl").open("a") as file:
        file.write("\n")
    said = prepare(world, folder)
    assert [line for line in said if "retrieve: done" in line]
    assert manifests(folder) == before


def test_a_stage_needs_no_service_but_its_own(world: World, tmp_path: Path) -> None:
    down = "generator.url=http://127.0.0.1:9/v1"
    for stage in ("download", "corpus", "index", "questions", "retrieve"):
        prepare(world, tmp_path / "data", down, wanted=stage)
    with pytest.raises(S3AgentError, match="the generator at"):
        prepare(world, tmp_path / "data", down, wanted="rag-cache")


def test_a_generator_that_fails_midway_keeps_what_was_answered(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for stage in ("download", "corpus", "index", "questions", "retrieve"):
        prepare(world, folder, wanted=stage)
    total = QUESTIONS + 20 + 48

    class Tired(FakeGenerator):
        async def answer(self, question: str, passages: Any) -> str:
            if len(self.calls) >= 50:
                self.failures = 10**9
            return await super().answer(question, passages)

    tired = Tired(lambda question, context: context)
    with serve(generator_app(tired)) as url, pytest.raises(S3AgentError):
        prepare(world, folder, f"generator.url={url}/v1", "generator.patience_s=0.1", wanted="rag-cache")
    assert not (folder / "rag_cache.json").exists()
    prepare(world, folder, wanted="rag-cache")
    assert total - 50 <= len(world.generator.calls) < total


@pytest.mark.parametrize(
    ("override", "field"),
    [("generator.model=other", "generator"), ("data.rag_topk=2", "topk"), ("judge.rule=judge", "judge")],
)
def test_a_cache_of_other_parts_is_refused_by_field(world: World, tmp_path: Path, override: str, field: str) -> None:
    from s3_agent.training.prepared_tasks import prepare_tasks

    folder = tmp_path / "data"
    prepare(world, folder)
    small = "trainer.questions_per_step=4"
    recipe = load_recipe(str(world.recipe), [*world.overrides(folder), small, override, "judge.model=j"])
    with pytest.raises(RagCacheError, match=rf"other inputs: {field} is ") as caught:
        prepare_tasks(recipe)
    assert "allow_mismatch" in caught.value.remedy
    allowed = recipe.model_copy(update={"data": recipe.data.model_copy(update={"allow_mismatch": True})})
    record = prepare_tasks(allowed).record
    assert [line.partition(" is ")[0] for line in record.mismatch] == [field]


@pytest.mark.parametrize("questions", ["s3", "search-r1"])
def test_published_rows_are_questions(world: World, tmp_path: Path, questions: str) -> None:
    prepare(world, tmp_path / "data", f"data.sources.questions={questions}")
    assert len(load_tasks(tmp_path / "data/questions/train.jsonl")) == QUESTIONS


def test_medical_questions_are_retrieved_without_options(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    medical = ["data.sources.corpus=medcorp", "data.sources.test=[medqa,mmlu]", "data.sources.sample=null"]
    prepare(world, folder, *medical)
    test = load_tasks(folder / "questions/validation.jsonl")
    assert len(test) == 16 and test[1].golden_answers == (f"B: {city(2)}",)
    assert test[1].question == f"Which city has the mayor M1\nOptions:\nA: {city(1)}\nB: {city(2)}\n"
    corpus = read_jsonl(folder / "corpus.jsonl")
    assert [row["id"] for row in corpus][:4] == ["wiki0_0", "wiki0_2", "wiki0_3", "wiki0_4"]
    assert corpus[0]["contents"] == '"wiki0 0"\nCells 0.'
    assert json.loads((folder / "manifests/corpus.json").read_text())["told"] == {"passages": 12, "without_text": 4}


def test_a_published_index_is_joined_from_its_parts(world: World, tmp_path: Path) -> None:
    import faiss

    folder = tmp_path / "data"
    dense = ["retriever.index.kind=dense", "retriever.index.encoder.model=intfloat/e5-base-v2"]
    overrides = ["data.sources.index=e5-flat", *dense, f"retriever.index.file={folder / 'e5_Flat.index'}"]
    for stage in ("download", "corpus", "index"):
        prepare(world, folder, *overrides, wanted=stage)
    assert faiss.read_index(str(folder / "e5_Flat.index")).ntotal == PASSAGES
    lucene = ["retriever.index.kind=lucene", f"retriever.index.path={folder / 'bm25'}"]
    overrides = ["data.sources.index=bm25-lucene", *lucene]
    for stage in ("download", "corpus", "index"):
        prepare(world, folder, *overrides, wanted=stage)
    assert sorted(path.name for path in (folder / "bm25").iterdir()) == ["_0.cfs", "segments_1"]


def test_two_at_once_are_refused(world: World, tmp_path: Path) -> None:
    from s3_agent.data.files.stages import Ledger

    with Ledger(tmp_path / "data").held(), pytest.raises(DataError, match="another process prepares"):
        prepare(world, tmp_path / "data")


def test_a_mirror_that_names_other_folders_writes_nothing(world: World, tmp_path: Path) -> None:
    class Mirror(FakeHub):
        def listing(self, repo: str) -> dict[str, Any]:
            listing = super().listing(repo)
            for sibling in listing["siblings"]:
                if "lfs" in sibling:
                    sibling["lfs"]["sha256"] = "../../../../outside"
            return listing

    mirror = fake_hub()
    with (
        serve(hub_app(Mirror(data_sets=mirror.data_sets, raw=mirror.raw))) as url,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in hub_at(url).items():
            patch.setattr(f"huggingface_hub.{name}", value, raising=False)
        with pytest.raises(DataError, match="lists an invalid file"):
            prepare(world, tmp_path / "data", wanted="download")
    assert not list(tmp_path.rglob("outside*")) and not (tmp_path / "hf").exists()
