"""The requests of the clients that exist, in the order and the shape in which they send them, over a real corpus."""

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from retrieval_server.schemas import CUT_HEADER
from tests.served_corpus import serving_rows

WORDS = ["river", "bank", "city", "norway", "krone", "castle", "bridge", "music", "theory", "field", "water", "stone"]
ROWS = [
    {"id": f"d{row}", "contents": f'"Title {row}"\n{" ".join(random.Random(row).choices(WORDS, k=8))} number{row}'}
    for row in range(400)
]
Post = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving_rows(tmp_path_factory.mktemp("clients"), ROWS) as url:
        yield url


@pytest.fixture(scope="module")
def post(url: str) -> Iterator[Post]:
    """Sends a body as JSON; `bare`: with no content type, as some clients and `curl -d` do in their way."""
    with httpx.Client(timeout=120) as client:

        def send(body: Any, *, content_type: str | None = "application/json") -> httpx.Response:
            headers = {} if content_type is None else {"content-type": content_type}
            return client.post(f"{url}/retrieve", content=json.dumps(body).encode(), headers=headers)

        yield send


def test_search_r1s_batches(post: Post) -> None:
    """One request a turn for all rollouts that search: 512 prompts of 5 samples at first, fewer later, at last none.

    The client reads `result` of whatever comes, a list for each query, and never asks again.
    """
    rng = random.Random(0)
    for active in (2560, 512, 3, 1, 0):
        queries = [f"{rng.choice(WORDS)} {rng.choice(WORDS)} number{rng.randrange(400)}" for _ in range(active)]
        if active == 512:
            queries[100] = "castle " * 30_000  # a model that repeats itself
            queries[101] = ""
            queries[102] = "\ud800 castle"
        answer = post({"queries": queries, "topk": 3, "return_scores": True})
        assert answer.status_code == 200
        result = answer.json()["result"]
        assert len(result) == active
        for number, hits in enumerate(result):
            assert len(hits) == (0 if active == 512 and number == 101 else 3)
            for hit in hits:
                title, _, text = hit["document"]["contents"].partition("\n")
                assert title.startswith('"Title') and text and isinstance(hit["score"], float)
        assert answer.headers.get(CUT_HEADER) == ("1" if active == 512 else None)
    assert [hit["document"]["id"] for hit in result] == []


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_any_content_type_or_none(post: Post, content_type: str | None) -> None:
    answer = post({"queries": ["number7"], "topk": 1}, content_type=content_type)
    assert (answer.status_code, answer.json()["result"][0][0]["id"]) == (200, "d7")


def test_many_passages_of_few_queries(post: Post) -> None:
    """Recall at 100 and at 1,000."""
    for topk, least in ((100, 100), (200, 150), (1000, 150)):
        [hits] = post({"queries": ["river bank city"], "topk": topk, "return_scores": True}).json()["result"]
        assert least <= len(hits) <= topk
        scores = [hit["score"] for hit in hits]
        assert scores == sorted(scores, reverse=True)


def test_agent_lightnings_single_queries(post: Post) -> None:
    """One query a request, k always 3, scores always asked for; the first list is read."""
    for number in (5, 6, 5):
        answer = post({"queries": [f"number{number}"], "topk": 3, "return_scores": True})
        assert answer.json()["result"][0][0]["document"]["contents"].startswith(f'"Title {number}"')


def test_skyrls_query_is_a_text_or_a_list(post: Post) -> None:
    """A text for one tool call; several calls of a moment as a list. Each gets a list of hits with `contents`."""
    for query, names in (("number8", ["d8"]), (["number8", "number9"], ["d8", "d9"]), ([], []), (["number8"], ["d8"])):
        for many in ({"topk": 3}, {"top_k": 3}):
            result = post({"query": query, **many, "return_scores": True}).json()["result"]
            assert [hits[0]["document"]["id"] for hits in result] == names
            assert all(hit["document"]["contents"] and hit["score"] for hits in result for hit in hits)
    assert post({"query": "  "}).json() == {"result": []}


def test_browsecomp_plus_reads_one_flat_list(post: Post) -> None:
    """`query` alone, one at a time; each hit has the passage's title and text, and its id beside it."""
    for body in ({"query": "number11"}, {"query": "number11", "topk": 1}):
        result = post(body).json()["result"]
        assert result[0]["docid"] == "d11"
        assert set(result[0]["document"]) >= {"title", "text"} and result[0]["document"]["title"] == "Title 11"
    assert len(result) == 1
    assert post({"query": "nothingofthekind"}).json() == {"result": []}


def test_a_reader_takes_a_passage_by_its_id_and_searches_on_without_those_it_has_seen(url: str, post: Post) -> None:
    """An agent of the newer kind: a search, the whole document, an exact string, then a search for what is left."""
    first = post({"queries": ["river bank"], "topk": 3}).json()["result"][0]
    seen = [document["id"] for document in first]
    assert httpx.get(f"{url}/documents/{seen[1]}").json() == first[1]
    found = httpx.post(f"{url}/grep", json={"pattern": r"NUMBER12\b", "ignore_case": True, "topk": 2}).json()
    [hit] = found["result"]
    assert hit["document"]["contents"][hit["start"] : hit["end"]] == "number12" and found["next"] is None
    six = [document["id"] for document in post({"queries": ["river bank"], "topk": 6}).json()["result"][0]]
    more = post({"queries": ["river bank"], "topk": 3, "exclude": seen}).json()["result"][0]
    assert [document["id"] for document in more] == six[3:]


@pytest.mark.parametrize("name", ["400", "nothing", "d1/2", "%2e%2e", "d1%00", "d" * 5000, "%ff"])
def test_an_id_that_no_passage_has(url: str, name: str) -> None:
    answer = httpx.get(f"{url}/documents/{name}", timeout=30)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_document")
