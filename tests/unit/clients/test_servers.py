"""Several retrieval servers behind one client: spreading, failing over, returning, and comparing their indexes."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3_agent.clients import servers
from s3_agent.clients.retriever import HttpRetriever
from s3_agent.clients.servers import addresses, difference
from s3_agent.data_identity import index_identity
from s3_agent.errors import ConfigError, LaunchError, RetrieverError
from s3_agent.processes import services
from s3_agent.recipe import load_recipe

INDEX = {"status": "ready", "corpus": "c1", "backend": "bm25", "settings": {"k1": 0.9}}
FOUND = {"result": [[{"document": {"id": "1", "contents": "t\nx"}, "score": 1.0}]]}
A, B, C = "http://a:1", "http://b:1", "http://c:1"


class FakeServers:
    """Servers behind one transport, each with an index, or down, or failing; counts the searches of each."""

    def __init__(self, **index: Any) -> None:
        self.index: dict[str, Any] = index
        self.down: set[str] = set()
        self.status: dict[str, int] = {}
        self.searches: Counter[str] = Counter()
        self.gates: dict[str, asyncio.Event] = {}

    async def handle(self, request: httpx.Request) -> httpx.Response:
        name = request.url.host
        if name in self.down:
            raise httpx.ConnectError("refused")
        if request.url.path == "/readyz":
            index = self.index[name]
            return httpx.Response(404) if index is None else httpx.Response(200, json=index)
        self.searches[name] += 1
        if name in self.gates:
            await self.gates[name].wait()
        if (status := self.status.get(name, 200)) != 200:
            return httpx.Response(status, json={}, headers={"Retry-After": "0"})
        return httpx.Response(200, json=FOUND)

    def retriever(self, *urls: str, patience_s: float = 5.0) -> HttpRetriever:
        client = httpx.AsyncClient(transport=httpx.MockTransport(self.handle))
        return HttpRetriever(client, ",".join(urls), patience_s=patience_s)


async def search(retriever: HttpRetriever, times: int) -> None:
    found = await asyncio.gather(*(retriever.retrieve(f"q{n}", topk=1) for n in range(times)))
    assert all(len(passages) == 1 for passages in found)


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not happened():
            await asyncio.sleep(0.01)


async def test_requests_are_spread_over_the_servers_by_what_each_has_open() -> None:
    fake = FakeServers(a=INDEX, b=INDEX)
    fake.gates = {"a": asyncio.Event(), "b": asyncio.Event()}
    task = asyncio.create_task(search(fake.retriever(A, B), 10))
    await until(lambda: fake.searches.total() == 10)
    assert fake.searches == {"a": 5, "b": 5}
    for gate in fake.gates.values():
        gate.set()
    await task


@pytest.mark.parametrize("fault", ["down", 500, 503, 429])
async def test_a_server_that_fails_loses_no_request_and_is_used_again(fault: str | int) -> None:
    fake = FakeServers(a=INDEX, b=INDEX)
    retriever = fake.retriever(A, B)
    await search(retriever, 20)
    if fault == "down":
        fake.down.add("a")
    else:
        fake.status["a"] = int(fault)
    await search(retriever, 50)
    fake.down.clear()
    fake.status.clear()
    before = fake.searches["a"]

    async def used_again() -> None:
        while fake.searches["a"] == before:
            await search(retriever, 4)
            await asyncio.sleep(0.01)

    await asyncio.wait_for(used_again(), 30)


async def test_a_server_that_is_left_out_gets_no_searches_until_it_reports_to_be_ready() -> None:
    fake = FakeServers(a=INDEX, b=INDEX)
    retriever = fake.retriever(A, B)
    await search(retriever, 8)
    fake.down.add("a")
    await search(retriever, 8)
    before = fake.searches["a"]
    await search(retriever, 30)
    assert fake.searches["a"] == before and fake.searches["b"] >= 38


async def test_with_every_server_away_the_error_names_them_all() -> None:
    fake = FakeServers(a=INDEX, b=INDEX)
    fake.down = {"a", "b"}
    with pytest.raises(RetrieverError, match=r"http://a:1.*http://b:1"):
        await fake.retriever(A, B, patience_s=0.3).retrieve("q", topk=1)
    retriever = fake.retriever(A, B, patience_s=20)
    waiting = asyncio.create_task(search(retriever, 3))
    await asyncio.sleep(0)
    fake.down = {"a"}
    await waiting
    assert fake.searches == {"b": 3}


async def test_two_indexes_are_an_error_that_names_both_servers_and_the_difference() -> None:
    fake = FakeServers(a=INDEX, b=INDEX, c={**INDEX, "corpus": "c2"})
    retriever = fake.retriever(A, B, C)
    for _ in range(2):
        with pytest.raises(RetrieverError, match=r'http://b:1 and http://c:1.*corpus is "c1" and "c2"') as caught:
            await retriever.retrieve("q", topk=1)
        assert caught.value.status is not None, "no attempt is repeated for it"
    assert not fake.searches


async def test_a_server_that_comes_back_with_another_index_is_not_used() -> None:
    fake = FakeServers(a=INDEX, b=INDEX)
    retriever = fake.retriever(A, B, patience_s=0.5)
    await search(retriever, 8)
    fake.down.add("a")
    await search(retriever, 8)
    fake.down.clear()
    fake.index["a"] = {**INDEX, "settings": {"k1": 1.2}}
    before = fake.searches["a"]
    await search(retriever, 30)
    fake.down.add("b")
    with pytest.raises(RetrieverError, match=r"the beginning and http://a:1 serve different indexes: settings is"):
        await retriever.retrieve("q", topk=1)
    assert fake.searches["a"] == before


async def test_servers_without_a_manifest_share_requests_but_not_with_one_that_has_one() -> None:
    fake = FakeServers(a=None, b=None)
    await search(fake.retriever(A, B), 10)
    assert set(fake.searches) == {"a", "b"}
    fake = FakeServers(a=None, b=INDEX)
    with pytest.raises(RetrieverError, match="only one of them reports its index"):
        await fake.retriever(A, B).retrieve("q", topk=1)


async def test_a_server_that_hangs_is_left_out_and_its_requests_go_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeServers(a=INDEX, b=INDEX)
    fake.gates["a"] = asyncio.Event()  # never set
    client = httpx.AsyncClient(transport=httpx.MockTransport(fake.handle))
    several = servers.Servers(client, (A, B), patrol_s=0.05)
    calls = [asyncio.create_task(several.request("POST", several.url + "/retrieve", json={})) for _ in range(6)]
    await until(lambda: fake.searches["a"] > 0 and fake.searches["b"] > 0)
    fake.down.add("a")
    assert {answer.status_code for answer in await asyncio.gather(*calls)} == {200}


async def test_one_address_is_not_asked_for_its_index() -> None:
    fake = FakeServers()  # would raise KeyError
    await search(fake.retriever(A + "/"), 2)


LOADING = {
    "error": {"code": "not_ready", "message": "analysing passages", "remedy": "ask again"},
    "progress": {"stage": "analysing passages", "done": 7, "total": 90},
}
READY = {"a": httpx.Response(503, json=LOADING), "b": httpx.Response(200, json=INDEX), "c": httpx.Response(502)}


def answering(monkeypatch: pytest.MonkeyPatch, **answers: httpx.Response) -> None:
    """What the servers answer to GET /readyz; one that is not named is down."""

    def get(url: str, *, timeout: float) -> httpx.Response:
        try:
            return answers[httpx.URL(url).host]
        except KeyError:
            raise httpx.ConnectError("refused") from None

    monkeypatch.setattr(servers, "get", get)
    monkeypatch.setattr(services, "get", lambda url, *, timeout: httpx.Response(200))


@pytest.mark.parametrize("given", ["http://a:1", "http://a:1,http://c:1,http://d:1"])
def test_a_server_that_is_loading_is_refused_with_its_progress_and_is_not_unknown(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, a=READY["a"], c=READY["c"])
    message = r"http://a:1 is not ready: analysing passages, 7 of 90"
    if "c" in given:
        message += r"; http://c:1 is not ready: status 502; http://d:1 does not answer: refused"
    recipe = load_recipe("cpu", [f"retriever.url={given}"])
    with pytest.raises(RetrieverError, match=message + "\n.*GET /readyz"):
        index_identity(recipe)
    with pytest.raises(LaunchError, match=message + "\n.*GET /readyz"):
        services.require_external(recipe, ["retriever"])


def test_one_of_several_that_is_loading_is_left_out_of_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, a=READY["a"], b=READY["b"])
    recipe = load_recipe("cpu", ["retriever.url=http://a:1,http://b:1"])
    assert index_identity(recipe) == INDEX
    services.require_external(recipe, ["retriever"])


def test_a_server_without_a_manifest_is_identified_by_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, a=httpx.Response(404))
    recipe = load_recipe("cpu", ["retriever.url=http://a:1"])
    assert index_identity(recipe)["backend"] == A
    services.require_external(recipe, ["retriever"])


@pytest.mark.parametrize(
    "given", ["retriever.url=http://a:1/,http://b:1", "retriever.url=[http://a:1,http://b:1,http://a:1/]"]
)
def test_a_recipe_takes_several_addresses_as_a_list_or_separated_by_commas(given: str) -> None:
    recipe = load_recipe("cpu", [given])
    assert addresses(recipe.retriever_url) == (A, B)
    assert type(recipe).model_validate(json.loads(recipe.model_dump_json())) == recipe


@pytest.mark.parametrize("wrong", ["http://a:1,b:1", "[http://a:1,7]", "http://a:1,,http://b:1"])
def test_a_wrong_address_among_several_names_the_field(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"retriever\.url"):
        load_recipe("cpu", [f"retriever.url={wrong}"])


@given(st.lists(st.sampled_from([None, "x", "y"]), min_size=1, max_size=5))
def test_servers_differ_exactly_if_not_all_report_the_same(reported: list[str | None]) -> None:
    identities = {f"http://{n}": corpus and {"corpus": corpus} for n, corpus in enumerate(reported)}
    told = difference(identities)  # pyright: ignore[reportArgumentType]
    assert (told is None) == (len(set(reported)) == 1)
