"""Web search over HTTP: a real server before a fake provider, recorded, replayed without it, and killed."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import httpx
import pytest
import schemathesis

from retrieval_server.app import create_app
from retrieval_server.app.listening import http_server
from retrieval_server.backends.web.asking import PLAIN_QUERY
from retrieval_server.backends.web.providers import PROVIDERS
from retrieval_server.backends.web.store import STORE, Store, recorded_digest
from retrieval_server.config import ServerSettings, index_settings
from retrieval_server.schemas import REFUSED_HEADER
from s3_agent.data.files.stages import Ledger, run_stages
from s3_agent.data_identity import index_identity, rag_fingerprint
from s3_agent.doctor.inputs import index_facts, open_corpus
from s3_agent.errors import ConfigError
from s3_agent.preparation.stages import DataStages
from s3_agent.processes.commands import retriever_command
from s3_agent.recipe import load_recipe
from s3_agent.testing.fakes import FakeGenerator
from s3_agent.testing.servers import generator_app, serve
from s3_agent.training.changes import conditions_of
from tests.fake_web_search import KEY, NOTHING, FakeWebSearch
from tests.pool_harness import until
from tests.served_api import MODES, fuzzed, metric
from tests.served_corpus import await_status, free_port

SPELLINGS = (KEY, quote(KEY), quote(KEY, safe=""), quote_plus(KEY), json.dumps(KEY)[1:-1])
HTTP = httpx.Client()  # a client costs more than a search
OPTIONS = {"google_cse": {"cx": "engine-1"}, "serper": {"gl": "no"}, "brave": {"extra_snippets": True}}


class Client:
    """What a client does with a server."""

    url: str

    @property
    def manifest(self) -> dict[str, Any]:
        return httpx.get(f"{self.url}/readyz").raise_for_status().json()

    def ask(self, *queries: str, topk: int = 3) -> httpx.Response:
        body = {"queries": queries, "topk": topk, "return_scores": True}
        return HTTP.post(f"{self.url}/retrieve", json=body, timeout=60)

    def search(self, *queries: str, topk: int = 3) -> list[list[dict[str, Any]]]:
        answer = self.ask(*queries, topk=topk)
        assert answer.status_code == 200, answer.text
        return answer.json()["result"]


def settings_of(provider: str, given: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "web", "provider": provider, "options": OPTIONS.get(provider, {}), **given}


@contextmanager
def serving(
    folder: Path, provider: str = "serper", *, limits: dict[str, Any] | None = None, **settings: Any
) -> Iterator[Client]:
    """A ready server in a thread of this process, with the key of the fake; a replay has none."""
    variable = PROVIDERS[provider].key_variable
    with pytest.MonkeyPatch.context() as patch:
        if settings["mode"] in ("live", "record"):
            patch.setenv(variable, KEY)
        else:
            patch.delenv(variable, raising=False)
        backend = index_settings.validate_python(settings_of(provider, settings))
        server_settings = ServerSettings(index=folder / "store", backend=backend, port=0, **(limits or {}))
        server = http_server(create_app(server_settings), server_settings)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        until(lambda: server.started)
        client = Client()
        client.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        try:
            until(lambda: httpx.get(f"{client.url}/readyz").status_code == 200)
            yield client
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


class Served(Client):
    """A web search server in a process of its own, with its log in a file."""

    def __init__(self, folder: Path, provider: str = "serper", *options: str, **settings: Any) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        path = folder / f"settings-{port}.yaml"
        path.write_text(json.dumps(settings_of(provider, settings)))
        self.log = folder / f"log-{port}.txt"
        index = ("--index", str(folder / "store"), "--backend", str(path), "--port", str(port))
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", "retrieval_server", *index, *options]
            environment = {**os.environ, PROVIDERS[provider].key_variable: KEY}
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def ready(self) -> None:
        await_status(f"{self.url}/readyz", 200, self.process)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def hidden(folder: Path, *more: str) -> bool:
    """Whether the key is nowhere in the folder (logs, settings, answers, SQLite's files) and in no other text."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    written = "\n".join([*(path.read_bytes().decode("utf-8", "replace") for path in files), *more])
    return not [spelling for spelling in SPELLINGS if spelling in written]


@pytest.fixture
def fake() -> FakeWebSearch:
    return FakeWebSearch()


@pytest.fixture
def provider_url(fake: FakeWebSearch) -> Iterator[str]:
    with serve(fake.app) as url:
        yield url


@pytest.mark.parametrize("provider", list(PROVIDERS.own))
def test_each_provider_is_recorded_and_replayed_without_it(
    provider: str, fake: FakeWebSearch, provider_url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    queries = ["rivers of Norway", NOTHING, "\u00e5 \u2603"]
    with serving(tmp_path, provider, mode="record", results=5, address=provider_url) as recording:
        found = recording.search(*queries, topk=4)
        assert sorted(fake.asked) == sorted((provider, query) for query in queries)  # asked at the same time
        assert recording.search(*queries, topk=2) == [hits[:2] for hits in found] and len(fake.asked) == 3
    first, nothing, other = found
    assert nothing == [] and len(first) == len(other) == 4
    assert [hit["score"] for hit in first] == [1, 1 / 2, 1 / 3, 1 / 4]
    for hit in first:
        page = hit["document"]
        assert page["id"].startswith("https://") and page["contents"] == f'"{page["title"]}"\n{page["text"]}'
        assert "<strong>" not in page["text"] and "&#x27;" not in page["text"] and "<b>" not in page["title"]
    assert fake.options.keys() >= OPTIONS.get(provider, {}).keys()
    for mode in ("replay", "replay_else_empty"):
        with serving(tmp_path, provider, mode=mode, results=5, address="http://127.0.0.1:9") as replay:
            assert replay.search(*queries, topk=4) == found
            assert replay.manifest["corpus"] == f"recorded {recorded_digest(tmp_path / 'store')}"
    assert len(fake.asked) == 3
    printed = capfd.readouterr()
    assert hidden(tmp_path, printed.out, printed.err)


def test_a_query_that_was_not_recorded_is_an_error_that_names_it_or_finds_nothing(
    fake: FakeWebSearch, provider_url: str, tmp_path: Path
) -> None:
    with serving(tmp_path, mode="record", address=provider_url) as recording:
        found = recording.search("known")
    with serving(tmp_path, mode="replay", address=provider_url) as replay:
        answer = replay.ask("known", "never asked")
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "not_recorded" and "'never asked'" in answer.json()["error"]["message"]
        assert replay.search("  known\n") == found
    with serving(tmp_path, mode="replay_else_empty", address=provider_url) as replay:
        assert replay.search("known", "never asked") == [*found, []]
    assert fake.queries == ["known"]


def test_a_query_that_is_asked_many_times_at_once_is_paid_once(
    fake: FakeWebSearch, provider_url: str, tmp_path: Path
) -> None:
    fake.gate = asyncio.Event()
    with serving(tmp_path, limits={"cache_mb": 0}, mode="record", address=provider_url) as recording:
        with ThreadPoolExecutor(12) as clients:
            asked = [
                clients.submit(recording.search, "same" if n % 2 else "other", topk=min(1 + n, 10)) for n in range(12)
            ]
            gone = httpx.Timeout(60, read=0.5)
            with pytest.raises(httpx.ReadTimeout):  # a client that leaves does not lose the paid answer
                httpx.post(f"{recording.url}/retrieve", json={"queries": ["left alone"]}, timeout=gone)
            until(lambda: len(fake.asked) == 3)
            fake.gate.set()
            found = [each.result()[0] for each in asked]
        assert [len(hits) for hits in found] == [min(1 + n, 10) for n in range(12)]
        assert sorted(fake.queries) == ["left alone", "other", "same"]
        until(lambda: httpx.post(f"{recording.url}/retrieve", json={"queries": ["left alone"]}).is_success)
        assert len(fake.asked) == 3
    assert Store(tmp_path / "store").calls == 3


def test_a_live_server_keeps_no_answers(fake: FakeWebSearch, provider_url: str, tmp_path: Path) -> None:
    with serving(tmp_path, mode="live", address=provider_url) as live:
        first = live.search("a query")
        assert live.search("a query") == first and fake.queries == ["a query", "a query"]
        fake.gate = asyncio.Event()
        with ThreadPoolExecutor(2) as clients:  # what is under way is shared
            asked = [clients.submit(live.search, "at once", "at once") for _ in range(2)]
            until(lambda: metric(live.url, "retrieval_queued_queries") == 4)
            fake.gate.set()
            assert asked[0].result() == asked[1].result() and fake.queries[2:] == ["at once"]
        assert live.manifest["corpus"] == "the web"
        page = first[0][0]["document"]
        assert HTTP.get(f"{live.url}/documents/{quote(page['id'], safe='')}").json()["id"] == page["id"]
        assert HTTP.post(f"{live.url}/grep", json={"pattern": "at once"}).json()["result"]
        assert live.search("answered", topk=10)[0][0]["document"] == {
            "id": live.search("answered")[0][0]["document"]["id"],
            "title": "The answer",
            "text": "42",
            "contents": '"The answer"\n42',
        }
    assert not (tmp_path / "store" / STORE).exists()


@pytest.mark.parametrize("failure", [(429, {"Retry-After": "1"}), (503, {}), (500, {})], ids=str)
def test_a_provider_that_fails_for_a_while_is_asked_again(
    failure: tuple[int, dict[str, str]], fake: FakeWebSearch, provider_url: str, tmp_path: Path
) -> None:
    fake.failures = [failure]
    with serving(tmp_path, mode="record", address=provider_url) as recording:
        assert len(recording.search("a")[0]) == 3
        assert fake.queries == ["a", "a"]
        fake.failures = [failure] * 50
    with serving(tmp_path, mode="record", address=provider_url, patience_s=0.2) as recording:
        answer = recording.ask("b")
        assert answer.status_code == 503 and "serper gave no answer within" in answer.text
        assert str(failure[0]) in answer.text
    assert hidden(tmp_path, answer.text)


def test_a_provider_that_can_not_be_reached_is_named(tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    with serving(tmp_path, "serpapi", mode="record", address=address, patience_s=0.2) as recording:
        answer = recording.ask("b")
        assert answer.status_code == 503 and "serpapi gave no answer" in answer.text and "ConnectError" in answer.text
    assert hidden(tmp_path, answer.text)


def test_a_long_wait_that_the_provider_asks_for_is_passed_on_at_once(
    fake: FakeWebSearch, provider_url: str, tmp_path: Path
) -> None:
    with serving(tmp_path, mode="record", address=provider_url, at_a_time=1) as recording:
        known = recording.search("known")
        fake.failures = [(429, {"Retry-After": "3600"})]
        with ThreadPoolExecutor(4) as clients:
            answers = list(clients.map(recording.ask, "abcd"))
        assert {answer.status_code for answer in answers} == {503}
        assert {answer.json()["error"]["code"] for answer in answers} == {"away"}
        assert all(3500 < int(answer.headers["Retry-After"]) <= 3600 for answer in answers)
        assert len(fake.queries) == 2, "nothing is sent before the provider wants it"
        assert recording.search("known") == known
    assert hidden(tmp_path, *(answer.text for answer in answers))


@pytest.mark.parametrize("status", [400, 413, 414, 422])
def test_a_query_that_the_provider_rejects_costs_only_its_own_list_and_is_replayed_so(
    status: int, fake: FakeWebSearch, provider_url: str, tmp_path: Path
) -> None:
    fake.rejected["bad"] = status

    def check(server: Client) -> list[list[dict[str, Any]]]:
        answer = server.ask("good", "bad", "well")
        assert answer.status_code == 200 and answer.headers[REFUSED_HEADER] == "1"
        assert [len(hits) for hits in answer.json()["result"]] == [3, 0, 3]
        alone = server.ask("bad")
        assert (alone.status_code, alone.json()["error"]["code"]) == (422, "bad_query")
        assert f"status {status}" in alone.json()["error"]["message"] and hidden(tmp_path, alone.text)
        return answer.json()["result"]

    with serving(tmp_path, mode="record", address=provider_url) as recording:
        found = check(recording)
        assert fake.queries.count("bad") == 1 and fake.queries.count(PLAIN_QUERY) == 1, "a refusal is recorded"
    for mode in ("replay", "replay_else_empty"):
        with serving(tmp_path, mode=mode) as replay:
            assert check(replay) == found
    assert len(fake.queries) == 4 and Store(tmp_path / "store").answers == 3


@pytest.mark.parametrize("status", [400, 422])
def test_a_provider_that_rejects_any_query_refuses_the_key_or_the_options(
    status: int, fake: FakeWebSearch, provider_url: str, tmp_path: Path
) -> None:
    fake.failures = [(status, {})] * 2
    with serving(tmp_path, "google_cse", mode="record", address=provider_url) as recording:
        answer = recording.ask("a")
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (403, "refused_by_provider")
        assert f"status {status}" in error["message"] and "GOOGLE_API_KEY" in error["remedy"]
        assert len(recording.search("a")[0]) == 3, "it is not recorded"
    assert fake.queries == ["a", PLAIN_QUERY, "a"] and hidden(tmp_path, answer.text)


@pytest.mark.parametrize("status", [401, 402, 403, 404, 432])
def test_a_refusal_is_told_without_the_key_and_not_repeated(
    status: int, fake: FakeWebSearch, provider_url: str, tmp_path: Path
) -> None:
    fake.failures = [(status, {})]
    with serving(tmp_path, "tavily", mode="record", address=provider_url) as recording:
        answer = recording.ask("a")
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (403, "refused_by_provider")
        assert f"status {status}" in error["message"] and "[key]" in error["message"]
        assert "TAVILY_API_KEY" in error["remedy"] or status not in (401, 403)
        assert fake.queries.count("a") == 1
        assert len(recording.search("a")[0]) == 3, "a refusal is not recorded"
    assert hidden(tmp_path, answer.text)


def test_a_problem_inside_an_answer_with_status_200_is_no_answer(
    fake: FakeWebSearch, provider_url: str, tmp_path: Path
) -> None:
    with serving(tmp_path, "serpapi", mode="record", address=provider_url) as recording:
        answer = recording.ask("problem")
        assert answer.status_code == 403 and "has run out of searches" in answer.text
        assert recording.search(NOTHING) == [[]]
    assert hidden(tmp_path, answer.text)


def test_the_key_is_in_no_file_that_a_server_writes_whatever_goes_wrong(
    fake: FakeWebSearch, provider_url: str, tmp_path: Path
) -> None:
    served = Served(tmp_path, "serpapi", mode="record", address=provider_url, patience_s=0.1)
    try:
        served.ready()
        said = [json.dumps(served.search("a"))]
        fake.failures = [(500, {}), (401, {})]
        said += [served.ask(query).text for query in ("b", "c", "problem")]
        assert "status 500" in said[1] and "status 401" in said[2] and "[key]" in said[3]
        # Whoever looks at everything that the server logs finds no key either.
        said += [httpx.get(f"{served.url}/metrics").text, httpx.get(f"{served.url}/readyz").text]
    finally:
        served.kill()
    assert "the index is away" in served.log.read_text() and hidden(tmp_path, *said)


def test_the_budget_of_paid_searches_is_never_passed(fake: FakeWebSearch, provider_url: str, tmp_path: Path) -> None:
    with serving(tmp_path, mode="record", address=provider_url, budget=2) as recording:
        recording.search("a", "b")
        answer = recording.ask("c")
        assert answer.status_code == 402 and answer.json()["error"]["code"] == "budget_spent"
        assert len(recording.search("a")[0]) == 3, "what is recorded costs nothing"
    with serving(tmp_path, mode="record", address=provider_url, budget=2) as recording:
        assert recording.ask("d").status_code == 402
    assert fake.queries == ["a", "b"] or fake.queries == ["b", "a"]


def test_a_recording_that_is_killed_keeps_every_answer_that_it_gave(
    fake: FakeWebSearch, provider_url: str, tmp_path: Path
) -> None:
    given: dict[str, Any] = {}
    one, two = (Served(tmp_path, mode="record", address=provider_url) for _ in range(2))
    with ThreadPoolExecutor(8) as clients:
        one.ready()
        two.ready()

        def record(number: int) -> None:
            query = f"query {number % 100}"
            try:
                [hits] = (one, two)[number % 2].search(query)
            except httpx.TransportError:
                return
            assert given.setdefault(query, hits) == hits, "both servers give the first answer"

        asked = [clients.submit(record, number) for number in range(200)]
        until(lambda: len(given) > 40)
        one.kill()
        for each in asked:
            each.result()
        two.kill()
    assert len(given) > 60
    with serving(tmp_path, mode="replay") as replay:
        assert replay.search(*given) == list(given.values())


def test_a_server_over_missing_or_changed_records_does_not_start(tmp_path: Path) -> None:
    def refused() -> str:
        served = Served(tmp_path, mode="replay")
        assert served.process.wait(timeout=60) == 1
        return served.log.read_text()

    assert "there are no recorded answers" in refused()
    store = Store(tmp_path / "store")
    store.keep("0" * 64, "{}", "{}", [])
    store.close()
    assert "were changed after they were recorded" in refused()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--corpus", "none.jsonl"), "--corpus: an index of this kind searches no corpus"),
        (("--topk", "11"), "11 passages a query are more than the 10 `results`"),
    ],
)
def test_options_that_do_not_fit_web_search_are_refused(
    arguments: tuple[str, str], problem: str, tmp_path: Path
) -> None:
    served = Served(tmp_path, "serper", *arguments, mode="live")
    assert served.process.wait(timeout=60) == 2
    assert problem in served.log.read_text()


def test_the_recorded_answers_are_part_of_a_runs_fingerprint(tmp_path: Path) -> None:
    def recorded(query: str) -> None:
        store = Store(tmp_path / "store")
        store.keep(query, "{}", "{}", [])
        store.close()

    def recipe(mode: str) -> Any:
        index = ("kind=web", "provider=serper", "results=20", f"mode={mode}")
        settings = [f"retriever.index.{setting}" for setting in index]
        return load_recipe("cpu", [*settings, f"retriever.folder={tmp_path / 'store'}"])

    with pytest.raises(ConfigError, match="there are no recorded answers"):
        index_identity(recipe("replay"))
    recorded("a")
    before = recipe("replay")
    identity, fingerprint, conditions = index_identity(before), rag_fingerprint(before), conditions_of(before)
    assert identity["corpus"] == f"recorded {recorded_digest(tmp_path / 'store')}"
    assert fingerprint.corpus == identity["corpus"] and "serper" in fingerprint.retriever
    recorded("b")
    assert index_identity(before)["corpus"] != identity["corpus"]
    assert rag_fingerprint(before).differences(fingerprint)[0].startswith("corpus is")
    changed = {name for name, value in conditions_of(before).items() if conditions[name] != value}
    assert changed == {"retriever.source"}
    assert index_identity(recipe("record"))["corpus"] == "the web"


def test_a_training_set_is_made_from_the_web_and_again_from_the_recording(
    fake: FakeWebSearch, provider_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("train", "validation"):
        questions = [f"What is {name} {number}?" for number in range(3)]
        shared = {"golden_answers": ["42"], "data_source": "own"}
        rows = [{"id": f"{name}{n}", "question": one, **shared} for n, one in enumerate(questions)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def prepared(folder: str, mode: str, generator: str) -> tuple[Ledger, bytes]:
        index = ["kind=web", "provider=serper", "results=12", f"mode={mode}", f"address={provider_url}"]
        recipe = load_recipe(
            "cpu",
            [
                *(f"retriever.index.{setting}" for setting in index),
                *(
                    f"retriever.folder={tmp_path / 'store'}",
                    f"data.folder={tmp_path / folder}",
                    "data.corpus=none.jsonl",
                ),
                *(f"data.{name}={tmp_path / name}.jsonl" for name in ("train", "validation")),
                *(f"data.rag_cache={tmp_path / folder / 'rag.json'}", f"prepared={tmp_path / folder}"),
                *(f"generator.url={generator}/v1", "generator.model=fake"),
            ],
        )
        ledger = Ledger(recipe.data_folder)
        run_stages(ledger, DataStages(recipe, ledger).all(), say=lambda line: None, dry_run=False)
        assert [stage.name for stage in DataStages(recipe, ledger).all() if ledger.open_question(stage)] == []
        return ledger, (tmp_path / folder / "retrieved.jsonl").read_bytes()

    with serve(generator_app(FakeGenerator(lambda question, context: context[:20]))) as generator:
        monkeypatch.setenv("SERPER_API_KEY", KEY)
        _, from_the_web = prepared("first", "record", generator)
        assert sorted(fake.queries) == sorted(
            f"What is {name} {n}?" for name in ("train", "validation") for n in range(3)
        )
        monkeypatch.delenv("SERPER_API_KEY")
        ledger, replayed = prepared("second", "replay", generator)
    assert replayed == from_the_web and len(fake.asked) == 6
    manifest = ledger.read("retrieve")
    assert manifest is not None and manifest["made_of"]["corpus"] == f"recorded {recorded_digest(tmp_path / 'store')}"
    assert hidden(tmp_path)


def test_the_doctor_finds_that_a_replay_has_no_recording(tmp_path: Path) -> None:
    index = ("kind=web", "provider=serper", "results=20", "mode=replay")
    overrides = [*(f"retriever.index.{setting}" for setting in index), f"retriever.folder={tmp_path}"]
    recipe = load_recipe("cpu", overrides)
    assert open_corpus(recipe, {}) is None
    facts = index_facts(recipe, None)
    assert (
        facts is not None
        and facts.problem == f"there are no recorded answers in {tmp_path}"
        and "record" in facts.remedy
    )
    Store(tmp_path).close()
    assert index_facts(recipe, None) is None
    command = retriever_command(recipe, port=3000)
    assert "--corpus" not in command and "--build" not in command


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("unknown", ["replay", "replay_else_empty"])
def test_nothing_that_openapi_allows_or_forbids_is_a_server_error_of_a_replay(
    mode: Any, unknown: str, fake: FakeWebSearch, provider_url: str, tmp_path: Path
) -> None:
    fake.rejected["bad"] = 400
    with serving(tmp_path, mode="record", address=provider_url) as recording:
        recording.search("0", "1", "good", "bad")
    with serving(tmp_path, mode=unknown) as replay:
        seen = fuzzed(replay.url, mode, examples=60)
        positive = mode is schemathesis.GenerationMode.POSITIVE
        for route in ("/retrieve", "/grep"):
            assert seen[route, 200 if positive else 422] > 10, seen
        if positive and unknown == "replay":
            assert seen["/retrieve", 404] > 10, seen
        assert len(replay.search("good")[0]) == 3, "it answers as before"
