"""What all engines share, without one: weights of terms, fusion, requests, keys, and an engine that is away."""

import asyncio
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
import tenacity
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from retrieval_server.backends.engines.filling import RECORD, Contents, fill
from retrieval_server.backends.engines.http_json import HttpJson, in_requests
from retrieval_server.backends.engines.kind import EngineKind
from retrieval_server.backends.engines.store import Batch
from retrieval_server.backends.engines.vocabulary import Vocabulary
from retrieval_server.backends.pgvector.kind import _word
from retrieval_server.backends.web.asking import Asking
from retrieval_server.backends.web.settings import WebSettings
from retrieval_server.backends.web.store import Store
from retrieval_server.batcher import Away, Batcher
from retrieval_server.config import index_settings
from retrieval_server.corpus import silent
from retrieval_server.errors import RequestRefused, RetrievalError, Unavailable
from retrieval_server.index_kinds import INDEX_KINDS
from retrieval_server.mcp.client import http_client
from retrieval_server.metrics import Metrics
from retrieval_server.services import ModelService, checked_url, patiently

PASSAGES = st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=12), min_size=1, max_size=12)


@given(passages=PASSAGES, query=st.lists(st.sampled_from("abcxyz"), max_size=8), k1=st.floats(0, 3), b=st.floats(0, 1))
def test_weights_multiply_to_lucenes_formula(passages: list[list[str]], query: list[str], k1: float, b: float) -> None:
    vocabulary = Vocabulary.of(passages)
    indices, weights = vocabulary.query(Counter(query))
    asked = dict(zip(indices, weights, strict=True))
    average = sum(map(len, passages)) / len(passages)
    for terms in passages:
        numbers, values = vocabulary.passage(terms, k1=k1, b=b)
        assert numbers == sorted(set(numbers))
        score = sum(asked.get(number, 0.0) * value for number, value in zip(numbers, values, strict=True))
        wanted = 0.0
        for term in query:
            held = sum(term in passage for passage in passages)
            if term in terms:
                found = terms.count(term)
                rarity = math.log(1 + (len(passages) - held + 0.5) / (held + 0.5))
                wanted += rarity * found / (found + k1 * (1 - b + b * len(terms) / average))
        assert score == pytest.approx(wanted)


def test_a_saved_vocabulary_is_the_same(tmp_path: Path) -> None:
    vocabulary = Vocabulary.of([["a", "b", "a"], [], ["b", "日本"]])
    vocabulary.save(tmp_path)
    again = Vocabulary.load(tmp_path)
    assert again.query(Counter("ab")) == vocabulary.query(Counter("ab"))
    assert again.passage(["日本", "a"], k1=0.9, b=0.4) == vocabulary.passage(["日本", "a"], k1=0.9, b=0.4)
    assert [path.name for path in tmp_path.iterdir()] == ["vocabulary.json"]


@given(terms=st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=2, unique=True))
def test_different_terms_are_different_words_of_letters(terms: list[str]) -> None:
    terms = [term.encode("utf-8", "replace").decode() for term in terms]
    words = [_word(term) for term in terms]
    assert all(word.isascii() and word.isalpha() and word.islower() for word in words)
    assert (words[0] == words[1]) == (terms[0] == terms[1])


@given(st.lists(st.integers(0, 40), max_size=30))
def test_requests_hold_all_rows_in_order_and_at_most_so_many_bytes(lengths: list[int]) -> None:
    from retrieval_server.backends.engines import http_json

    rows = [{"text": "x" * length} for length in lengths]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http_json, "MOST_BYTES", 60)
        requests = list(in_requests(rows))
    assert [row for some in requests for row in some] == rows
    assert all(len(some) == 1 or sum(len(str(row)) for row in some) <= 60 for some in requests)


@pytest.mark.parametrize("url", ["localhost:6333", "ftp://host", "http://me:secret@host", "http://me@host"])
def test_an_address_is_http_and_carries_no_key(url: str) -> None:
    with pytest.raises(ValueError, match="`url`"):
        checked_url(url)


def answering(
    monkeypatch: pytest.MonkeyPatch, answer: httpx.Response | Exception
) -> tuple[HttpJson, list[httpx.Request]]:
    """A client of an engine that gives this answer, and the requests that reach it."""
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(httpx, "HTTPTransport", lambda **_: httpx.MockTransport(handle))
    monkeypatch.setenv("ENGINE_KEY", "k")
    options: Any = {"key_variable": "ENGINE_KEY", "key_header": "api-key", "key_form": "Key {}"}
    return HttpJson("Engine", "http://engine:1/", timeout_s=1.0, **options), seen


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (httpx.ConnectError("refused"), Unavailable, "does not answer: ConnectError refused"),
        (httpx.ReadTimeout("slow"), Unavailable, "ReadTimeout slow"),
        (httpx.Response(503, text="starting"), Unavailable, "503: starting"),
        (httpx.Response(429, text="slower"), Unavailable, "429: slower"),
        (httpx.Response(401, text="who?"), RetrievalError, "set the environment variable ENGINE_KEY"),
        (httpx.Response(400, text="no such field"), RequestRefused, "400: no such field"),
        (httpx.Response(404, text="nothing"), RetrievalError, "404: nothing"),
        (httpx.Response(200, text="<html>"), RetrievalError, "with no JSON"),
    ],
)
def test_an_engine_that_refuses_or_is_away_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, answer: Any, error: type[Exception], says: str
) -> None:
    client, _ = answering(monkeypatch, answer)
    with pytest.raises(error, match=says) as caught:
        client.call("GET", "/x")
    assert type(caught.value) is error


def test_the_key_goes_into_the_header_only(monkeypatch: pytest.MonkeyPatch) -> None:
    client, seen = answering(monkeypatch, httpx.Response(200, json={"a": 1}))
    assert client.call("POST", "/x", {"b": 2}) == {"a": 1}
    assert (seen[0].headers["api-key"], str(seen[0].url), seen[0].content) == (
        "Key k",
        "http://engine:1/x",
        b'{"b": 2}',
    )


def test_what_is_absent_may_be_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    client, _ = answering(monkeypatch, httpx.Response(404))
    assert client.call("GET", "/x", absent={}) == {}


def test_a_call_is_repeated_while_the_engine_is_away() -> None:
    left = [Unavailable("away"), Unavailable("away")]

    def call() -> str:
        if left:
            raise left.pop()
        return "found"

    assert patiently(call, patience_s=60.0) == "found"
    with pytest.raises(Unavailable):
        patiently(lambda: (_ for _ in ()).throw(Unavailable("away")), patience_s=0.0)
    with pytest.raises(RetrievalError, match="refused"):
        patiently(lambda: (_ for _ in ()).throw(RetrievalError("refused")), patience_s=60.0)


def test_a_service_that_says_when_to_ask_again_is_asked_then_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(tenacity.nap.time, "sleep", waits.append)
    busy = httpx.Response(429, headers={"Retry-After": "7"})
    client, seen = answering(monkeypatch, busy)
    with pytest.raises(Unavailable) as caught:
        patiently(lambda: client.call("GET", "/x"), patience_s=5.0)
    assert caught.value.retry_after_s == 7.0 and (len(seen), waits) == (1, [])
    model = ModelService("the reranker", "http://engine:1/", key_variable=None, timeout_s=1.0, patience_s=5.0)
    with pytest.raises(Unavailable, match="429") as caught:
        model.post({})
    assert caught.value.retry_after_s == 7.0 and (len(seen), waits) == (2, [])
    left = [caught.value] * 3

    def call() -> str:
        if left:
            raise left.pop()
        return "found"

    assert patiently(call, patience_s=60.0) == "found" and waits == [7.0] * 3


async def test_a_batch_is_not_halved_while_the_engine_is_away() -> None:
    searched: list[int] = []

    def search(queries: Any, topk: int) -> Any:
        searched.append(len(queries))
        raise Unavailable("the engine is away", remedy="start it", retry_after_s=7.5)

    batcher = Batcher(search, lambda _: 1, max_cost=1000, max_queries=100, max_queued=100, metrics=Metrics())
    futures = [batcher.submit(f"q{number}", topk=1) for number in range(8)]
    outcomes = await asyncio.gather(*futures, return_exceptions=True)
    await batcher.close()
    assert sum(searched) == 8 and all(type(outcome) is Away for outcome in outcomes)
    assert {str(outcome) for outcome in outcomes} == {"the engine is away"}
    assert {getattr(outcome, "retry_after_s", None) for outcome in outcomes} == {7.5}


class FakeMemoryStore:
    """A fake of an engine: rows in a dictionary that outlives the store. `loses` rows when it is asked to count."""

    def __init__(self, rows: dict[int, bytes] | None = None, loses: Sequence[int] = ()) -> None:
        self.rows, self.loses, self.emptied = rows, loses, 0

    def prepare(self, *, fresh: bool) -> bool:
        self.emptied += fresh
        there, self.rows = not fresh and self.rows is not None, {} if fresh else self.rows or {}
        return there

    def put(self, batch: Batch) -> None:
        assert self.rows is not None
        self.rows |= {batch.start + at: row for at, row in enumerate(self.canonical(batch))}

    def canonical(self, batch: Batch) -> list[bytes]:
        return [id_.encode() for id_ in batch.ids]

    def finish(self, report: Any) -> None:
        pass

    def count(self) -> int:
        return len({*(self.rows or ())} - {*self.loses})


def filled(store: Any, folder: Path) -> None:
    """Write five passages in batches of two."""
    folder.mkdir(exist_ok=True)

    def batch_of(start: int, end: int) -> Batch:
        return Batch(start, [f"p{row}" for row in range(start, end)], None, None)

    fill(store, batch_of, Contents(None, 2), name="p_0123", passages=5, folder=folder, report=silent)


def test_what_a_folder_has_no_record_of_is_not_emptied(tmp_path: Path) -> None:
    store = FakeMemoryStore()
    filled(store, tmp_path / "first")
    with pytest.raises(RetrievalError, match=r"already \(p_0123, 5 passages\)(.|\n)*another `name`, or remove it"):
        filled(store, tmp_path / "second")
    assert (store.count(), store.emptied) == (5, 0) and not (tmp_path / "second" / RECORD).exists()
    filled(FakeMemoryStore({}), tmp_path / "second")  # an empty one is filled


def test_a_build_whose_count_was_wrong_starts_again(tmp_path: Path) -> None:
    store = FakeMemoryStore(loses=[3])
    with pytest.raises(RetrievalError, match="holds 4 passages, 5 were written"):
        filled(store, tmp_path / "index")
    store.loses = ()
    filled(store, tmp_path / "index")
    assert (store.count(), store.emptied) == (5, 1)


PAGE = Path(__file__).parents[3] / "docs/engines.md"


def test_the_settings_of_the_page_are_valid_and_each_engine_has_some() -> None:
    text = PAGE.read_text(encoding="utf-8")
    shown = [
        index_settings.validate_python(yaml.safe_load(block)) for block in re.findall(r"```yaml\n(.*?)```", text, re.S)
    ]
    engines = [name for name in INDEX_KINDS if isinstance(INDEX_KINDS[name], EngineKind)]
    assert sorted(settings.kind for settings in shown) == sorted(engines)
    for name in engines:
        assert f"--backend {name}.yaml" in text and re.search(rf"^\| `{name}` \|", text, re.M)


@pytest.mark.parametrize("name", ["pgvector", "qdrant", "opensearch", "lancedb"])
def test_where_an_index_is_is_no_part_of_what_it_is(name: str) -> None:
    kind = INDEX_KINDS[name]
    search = {"encoder": {"model": "m"}} if name == "lancedb" else {"search": "bm25"}
    url = "postgresql://me@host/db" if name == "pgvector" else "http://host:1"
    settings = kind.settings.model_validate({"kind": name, "url": url, **search})
    assert not {"url", "name"} & {*settings.answers()}
    again = kind.settings.model_validate({"kind": name, **settings.identity(), **settings.place()})
    assert again.identity() == settings.identity()


@pytest.mark.parametrize(
    ("values", "topk", "names"),
    [
        ({"layout": "hnsw", "ef_search": 20}, 21, "ef_search"),
        ({"layout": "binary", "candidates": 20}, 21, "candidates"),
        ({"search": "hybrid", "fused": 20}, 21, "fused"),
        ({"search": "hybrid", "fused": 30, "ef_search": 20}, 8, "ef_search"),
    ],
)
def test_more_passages_than_a_graph_returns_are_refused(values: dict[str, Any], topk: int, names: str) -> None:
    given = {"kind": "pgvector", "url": "postgresql://me@host/db", "encoder": {"model": "m"}, **values}
    settings = index_settings.validate_python(given)
    with pytest.raises(ValueError, match=f"`{names}` is 20, below the"):
        settings.check_topk(topk)
    enough = {"fused": 50} if given.get("search") == "hybrid" else {}
    of_graph = ("ef_search", "candidates")
    exact = {name: value for name, value in given.items() if name not in of_graph}
    index_settings.validate_python({**exact, "layout": "exact", **enough}).check_topk(topk)


WHERE = {
    "pgvector": "postgresql://me@host/db",
    "qdrant": "http://h:1",
    "opensearch": "http://h:1",
    "lancedb": "/folder",
}


@pytest.mark.parametrize(
    ("kind", "values", "ignored", "reason"),
    [
        *(("pgvector", {"search": "dense"}, one, "search: dense") for one in ({"k1": 1.2}, {"fused": 50})),
        *(("qdrant", {"search": "dense"}, one, "search: dense") for one in ({"b": 0.1}, {"stemmer": "none"})),
        ("lancedb", {}, {"stopwords": "none"}, "search: dense"),
        ("opensearch", {}, {"rank_constant": 1}, "search: bm25"),
        ("pgvector", {"search": "bm25"}, {"layout": "exact"}, "search: bm25"),
        ("pgvector", {"search": "bm25"}, {"ef_search": 40}, "search: bm25"),
        ("pgvector", {"layout": "hnsw"}, {"candidates": 40}, "layout: hnsw"),
        ("pgvector", {"layout": "binary"}, {"ef_search": 40}, "layout: binary"),
        ("pgvector", {"layout": "exact"}, {"hnsw_links": 8}, "layout: exact"),
        ("qdrant", {"search": "bm25"}, {"quantization": "int8"}, "search: bm25"),
        ("qdrant", {"layout": "exact"}, {"quantization": "int8"}, "layout: exact"),
        ("qdrant", {"layout": "exact"}, {"ef_search": 40}, "layout: exact"),
        ("qdrant", {}, {"rescore": False}, "quantization: none"),
        ("lancedb", {"layout": "exact"}, {"probes": 3}, "layout: exact"),
        ("lancedb", {"layout": "ivf_flat"}, {"refine": 3}, "layout: ivf_flat"),
    ],
)
def test_a_setting_without_effect_is_refused_and_is_no_part_of_the_index(
    kind: str, values: dict[str, Any], ignored: dict[str, Any], reason: str
) -> None:
    [name] = ignored
    words = kind == "opensearch" or values.get("search") == "bm25"
    given = {"kind": kind, "url": WHERE[kind], **({} if words else {"encoder": {"model": "m"}}), **values}
    with pytest.raises(ValidationError, match=f"`{name}` has no effect with `{reason}`: leave it out"):
        index_settings.validate_python(given | ignored)
    settings = index_settings.validate_python(given)
    assert name not in settings.identity() and name not in settings.answers()
    assert index_settings.validate_python(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize("kind", WHERE)
def test_what_has_an_effect_is_a_part_of_the_answers(kind: str) -> None:
    """Every field that an engine builds or searches with is used by some settings of it."""
    settings = INDEX_KINDS[kind].settings
    ways = {
        name: get_args(settings.model_fields[name].annotation)
        for name in ("search", "layout", "quantization")
        if name in settings.model_fields
    }
    used: set[str] = set()
    for values in product(*ways.values()):
        chosen = dict(zip(ways, values, strict=True))
        encoder = {} if chosen["search"] == "bm25" else {"encoder": {"model": "m"}}
        try:
            used |= {*index_settings.validate_python({"kind": kind, "url": WHERE[kind], **chosen, **encoder}).answers()}
        except ValidationError as refused:
            assert "has no effect with" in str(refused)
    assert {*settings.built_with, *settings.searched_with} <= used  # pyright: ignore[reportAttributeAccessIssue]


def test_a_folder_of_lancedb_is_found_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"kind": "lancedb", "encoder": {"model": "m"}}
    assert index_settings.validate_python({**given, "url": "vectors"}).place()["url"] == str(tmp_path / "vectors")
    assert index_settings.validate_python({**given, "url": "s3://b/p"}).place()["url"] == "s3://b/p"


OF_AN_ENGINE: dict[str, Any] = {"key_variable": "ENGINE_KEY", "key_header": "authorization", "key_form": "{}"}


def service_with_key(kind: str, url: str) -> Callable[[], Any]:
    """A call through a new client whose key is in ENGINE_KEY."""
    if kind == "engine":
        client = HttpJson("Engine", url, timeout_s=1.0, **OF_AN_ENGINE)
        return lambda: client.call("GET", "/x")
    service = ModelService("the model", url, key_variable="ENGINE_KEY", timeout_s=1.0, patience_s=0)
    return lambda: service.post({})


@pytest.mark.parametrize("kind", ["engine", "model"])
@pytest.mark.parametrize("value", ["se\ncret-key", "geheimschlüssel", "one two three"])
def test_what_is_no_key_is_refused_without_showing_it(kind: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_KEY", value)
    with pytest.raises(RetrievalError, match="ENGINE_KEY holds no key") as caught:
        service_with_key(kind, "http://engine:1")
    assert value not in str(caught.value)


@pytest.mark.parametrize("kind", ["engine", "model"])
@pytest.mark.parametrize("status", [200, 400, 503, None])
def test_no_error_shows_the_key(kind: str, status: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        if status is None:
            raise httpx.LocalProtocolError(f"illegal header {seen[0]}")
        return httpx.Response(status, text=f"you sent {seen[0]}")

    monkeypatch.setattr(httpx, "HTTPTransport", lambda **_: httpx.MockTransport(handle))
    monkeypatch.setenv("ENGINE_KEY", "ApiKey secret-key\n" if kind == "engine" else " secret-key\n")
    with pytest.raises(RetrievalError) as caught:
        service_with_key(kind, "http://engine:1")()
    assert seen == ["ApiKey secret-key" if kind == "engine" else "Bearer secret-key"]
    assert "secret-key" not in str(caught.value) and "[key]" in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost.", "[::1]", "engine"])
@pytest.mark.parametrize("kind", ["engine", "model", "mcp", "web"])
def test_a_service_on_this_machine_is_not_asked_through_a_proxy(
    kind: str, host: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[str | None] = []
    monkeypatch.setattr(httpx, "HTTPTransport", lambda *, proxy: made.append(proxy) or httpx.BaseTransport())
    monkeypatch.setattr(httpx, "AsyncHTTPTransport", lambda *, proxy: made.append(proxy) or httpx.AsyncBaseTransport())
    for name, value in (("http_proxy", "http://proxy:3128"), ("no_proxy", "fd00::/8"), ("SERPER_API_KEY", "k")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ENGINE_KEY", "k")
    match kind:
        case "mcp":
            http_client(f"http://{host}:1", None)
        case "web":
            Asking(WebSettings(provider="serper", address=f"http://{host}:1"), Store(tmp_path))
        case _:
            service_with_key(kind, f"http://{host}:1")
    assert made == ["http://proxy:3128" if host == "engine" else None]


@pytest.mark.parametrize("command", ["mcp", "serve"])
def test_a_server_and_the_tools_in_front_of_it_refuse_what_is_no_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    from retrieval_server.app.command import main as serve
    from retrieval_server.mcp.command import main as mcp

    monkeypatch.setenv("RETRIEVAL_SERVER_KEY", "se\ncret-key")
    monkeypatch.setattr("asyncio.run", lambda coroutine: coroutine.close())
    monkeypatch.setattr("sys.argv", ["retrieval_server", "--index", "none"])
    with pytest.raises(SystemExit):
        serve() if command == "serve" else mcp(["--url", "http://127.0.0.1:1"])
    told = capsys.readouterr().err
    assert "RETRIEVAL_SERVER_KEY holds no key" in told and "cret-key" not in told
