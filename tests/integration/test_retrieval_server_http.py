"""The retrieval server as its clients meet it: a process of its own, spoken to over HTTP."""

import asyncio
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engines import LEXICAL, engine_settings, running_engine
from tests.served_corpus import DEADLINE_S, await_status, command, free_port, serving_rows, write_corpus

ROWS = [
    {"id": "0", "contents": '"Norway"\nThe currency of Norway is the krone.'},
    {"id": "1", "title": "Sweden", "text": "The currency of Sweden is the krona."},
    {"id": "2", "contents": '"Oslo"\nOslo is a city in Norway.'},
    {"id": "3", "contents": '"Nile"\nThe Nile is a river.'},
]


@pytest.fixture(scope="module", params=["bm25s", "block_max", *LEXICAL])
def backend(request: pytest.FixtureRequest) -> str:
    """What searches: an engine of our BM25, or an engine of others that searches by words."""
    return request.param


@pytest.fixture(scope="module")
def server(backend: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a ready server over ROWS."""
    folder = tmp_path_factory.mktemp("server")
    with ExitStack() as stack:
        settings = f"kind: bm25\nengine: {backend}\n"
        if backend in LEXICAL:
            settings = engine_settings(stack.enter_context(running_engine(backend)), "contract").model_dump_json()
        (folder / "backend.yaml").write_text(settings, encoding="utf-8")
        options = ["--topk", "2", "--backend", str(folder / "backend.yaml")]
        yield stack.enter_context(serving_rows(folder, ROWS, *options))


@pytest.fixture
def ask(server: str) -> Callable[..., httpx.Response]:
    """POST /retrieve with the given fields."""

    def post(**body: Any) -> httpx.Response:
        return httpx.post(f"{server}/retrieve", json=body, timeout=30)

    return post


def test_with_scores_each_hit_wraps_its_document(ask: Callable[..., httpx.Response]) -> None:
    [hits] = ask(queries=["currency of Norway"], return_scores=True).json()["result"]
    assert hits[0]["document"] == {
        "id": "0",
        "title": "Norway",
        "text": "The currency of Norway is the krone.",
        "contents": '"Norway"\nThe currency of Norway is the krone.',
    }
    assert hits[0]["score"] > hits[1]["score"] > 0


def test_without_scores_documents_are_bare(ask: Callable[..., httpx.Response]) -> None:
    scored = ask(queries=["krona", "Oslo"], return_scores=True).json()["result"]
    for body in ({"return_scores": False}, {}):
        bare = ask(queries=["krona", "Oslo"], **body).json()["result"]
        assert bare == [[hit["document"] for hit in hits] for hits in scored]
    assert bare[0] == [
        {
            "id": "1",
            "title": "Sweden",
            "text": "The currency of Sweden is the krona.",
            "contents": '"Sweden"\nThe currency of Sweden is the krona.',
        }
    ]


@pytest.mark.parametrize(("topk", "hits"), [(1, 1), (3, 3), (None, 2), (0, 2), (100, 3)])
def test_topk_is_the_requests_or_the_servers_and_a_limit_only(
    ask: Callable[..., httpx.Response], topk: int | None, hits: int
) -> None:
    [found] = ask(queries=["Norway currency"], topk=topk).json()["result"]
    assert len(found) == hits


def test_a_query_without_hits_spoils_no_other(ask: Callable[..., httpx.Response]) -> None:
    for scores in (True, False):
        empty, stop_words, found = ask(queries=["", "to be", "Nile"], return_scores=scores).json()["result"]
        assert (empty, stop_words, len(found)) == ([], [], 1)


def test_half_a_character_is_a_query_without_hits(server: str) -> None:
    content = b'{"queries": ["\\ud800", "Nile"]}'
    response = httpx.post(f"{server}/retrieve", content=content, headers={"content-type": "application/json"})
    assert [len(hits) for hits in response.json()["result"]] == [0, 1]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"queries": "text"}, 422, "invalid_request"),
        ({"queries": ["a"], "query": "a"}, 422, "invalid_request"),
        ({"query": "a", "topk": 1, "top_k": 2}, 422, "invalid_request"),
        ({}, 422, "invalid_request"),
        ({"queries": [None]}, 422, "invalid_request"),
        ({"queries": ["a"], "topk": -1}, 422, "invalid_request"),
        ({"queries": ["a"], "topk": 10**6}, 422, "topk_too_large"),
        ({"queries": ["a"] * 20_000}, 413, "too_many_queries"),
    ],
)
def test_a_refusal_says_what_is_wrong_and_what_to_do(
    ask: Callable[..., httpx.Response], body: dict[str, Any], status: int, code: str
) -> None:
    response = ask(**body)
    assert response.status_code == status
    error = response.json()["error"]
    assert error["code"] == code and error["message"] and error["remedy"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"text"', b'{"queries": ["\xff"]}'])
def test_what_is_not_a_request_is_refused_in_the_same_shape(server: str, content: bytes) -> None:
    response = httpx.post(f"{server}/retrieve", content=content, headers={"content-type": "application/json"})
    assert 400 <= response.status_code < 500
    assert set(response.json()["error"]) == {"code", "message", "remedy"}


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/retrieve", 405)])
def test_a_wrong_address_is_refused_in_the_same_shape(server: str, method: str, path: str, status: int) -> None:
    response = httpx.request(method, server + path)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"code", "message", "remedy"}


def test_a_body_is_read_to_its_limit_only(server: str) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(65):
            yield b" " * (1 << 20)

    for content in (b" " * (65 << 20), chunks()):
        response = httpx.post(f"{server}/retrieve", content=content, timeout=30)
        assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")


def test_health_readiness_and_openapi(server: str, backend: str) -> None:
    assert httpx.get(f"{server}/healthz").json() == {"status": "ok"}
    ready = httpx.get(f"{server}/readyz").json()
    assert (ready["status"], ready["passages"], ready["backend"]) == (
        "ready",
        len(ROWS),
        backend if backend in LEXICAL else "bm25",
    )
    assert "/retrieve" in httpx.get(f"{server}/openapi.json").json()["paths"]


async def test_concurrent_clients_get_their_own_answers(server: str) -> None:
    wanted = {"krona": "1", "krone": "0", "Nile": "3", "city": "2"}
    async with httpx.AsyncClient(timeout=60) as client:

        async def first(query: str) -> str:
            response = await client.post(f"{server}/retrieve", json={"queries": [query]})
            return response.json()["result"][0][0]["id"]

        queries = list(wanted) * 16
        assert await asyncio.gather(*map(first, queries)) == [wanted[query] for query in queries]


def test_it_answers_while_it_loads(tmp_path: Path) -> None:
    filler = " ".join(f"word{number}" for number in range(60))
    write_corpus(tmp_path, [{"id": row, "title": f"T{row}", "text": f"{filler} unique{row}"} for row in range(20_000)])
    url = f"http://127.0.0.1:{(port := free_port())}"
    process = subprocess.Popen(command(tmp_path, port=port))
    try:
        waiting = await_status(f"{url}/readyz", 503, process)
        assert waiting.headers["retry-after"] == "1" and waiting.json()["error"]["code"] == "not_ready"
        assert httpx.get(f"{url}/healthz", timeout=30).json() == {"status": "ok"}
        assert httpx.post(f"{url}/retrieve", json={"queries": ["unique7"]}, timeout=30).status_code == 503
        await_status(f"{url}/readyz", 200, process)
        [[found]] = httpx.post(f"{url}/retrieve", json={"queries": ["unique7"]}, timeout=30).json()["result"]
        assert found["id"] == "7"
    finally:
        process.terminate()
        process.wait(timeout=30)


def run(folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(folder, **options), capture_output=True, text=True, timeout=DEADLINE_S, check=False)


def test_a_busy_port_is_exit_code_2(tmp_path: Path) -> None:
    write_corpus(tmp_path, ROWS)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        ended = run(tmp_path, port=port)
    assert ended.returncode == 2
    assert str(port) in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.parametrize("options", [("--port", "99999"), ("--topk", "0")])
def test_a_setting_out_of_range_is_a_usage_error(tmp_path: Path, options: tuple[str, ...]) -> None:
    ended = run(tmp_path, port=0, options=options)
    assert ended.returncode == 2 and options[0] in ended.stderr and "Traceback" not in ended.stderr


def test_it_ends_with_the_reason_when_the_index_is_anothers(tmp_path: Path) -> None:
    write_corpus(tmp_path, ROWS)
    missing = run(tmp_path, port=0, options=())
    assert missing.returncode == 1 and "holds no finished index" in missing.stdout + missing.stderr
    process = subprocess.Popen(command(tmp_path, port=(port := free_port())))
    try:
        await_status(f"http://127.0.0.1:{port}/readyz", 200, process)
    finally:
        process.terminate()
        process.wait(timeout=30)
    write_corpus(tmp_path, ROWS[:2])
    stale = run(tmp_path, port=0, options=())
    assert stale.returncode == 1 and "is another's" in stale.stdout + stale.stderr and "--build" in stale.stdout


def test_a_bad_corpus_line_is_named(tmp_path: Path) -> None:
    write_corpus(tmp_path, [ROWS[0], {"id": "1"}])
    ended = run(tmp_path, port=0)
    assert ended.returncode == 1 and "corpus.jsonl:2 is not a passage" in ended.stdout + ended.stderr
