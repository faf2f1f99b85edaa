"""The retrieval server under clients that leave, shout, lie and repeat themselves, and over a backend that fails."""

import asyncio
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
import schemathesis

from retrieval_server.app import create_app
from retrieval_server.app.listening import http_server
from retrieval_server.app.service import Opened, Opener, Report
from retrieval_server.config import ServerSettings
from retrieval_server.errors import QueryError, RetrievalError
from retrieval_server.schemas import CUT_HEADER, KEY_VARIABLE, REFUSED_HEADER, Document
from s3_agent.clients.retriever import HttpRetriever
from s3_agent.errors import RetrieverError
from tests.served_api import MODES, fuzzed, metric

WITHIN_S = 30.0
MANIFEST = {"backend": "engine", "corpus": "none", "passages": 100, "settings": {}}
KEY = "a-key"


class Engine:
    """Hits are the rows 0 … topk-1. A search waits while the gate is closed, and a reader of any row but the first
    while `reading` is cleared.

    The query `bad` fails, and the query `its own` by its own fault.
    """

    ignores_whitespace: ClassVar[bool] = True

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Semaphore(0)
        self.searched: list[str] = []
        self.reading = threading.Event()
        self.reading.set()
        self.read: list[int] = []

    def cost(self, query: str) -> int:
        return 1 + len(query)

    def search(self, queries: Sequence[str], *, topk: int) -> list[list[tuple[int, float]]]:
        self.searched += queries
        self.begun.release()
        assert self.gate.wait(WITHIN_S)
        if "bad" in queries:
            raise ValueError("the index has a hole")
        if "its own" in queries:
            raise QueryError("it is nested too deeply")
        return [[(row, 1.0 / (row + 1)) for row in range(topk)] for _ in queries]

    def __len__(self) -> int:
        return 2000

    def __getitem__(self, row: int) -> Document:
        self.read.append(row)
        assert row == 0 or self.reading.wait(WITHIN_S)
        return Document(id=str(row), title="T", text="\ud800" if row == 9 else "t", contents='"T"\nt')

    def row_of(self, name: str) -> int | None:
        return int(name) if name.isdecimal() and len(name) < 4 else None

    def opens(self, report: Report) -> Opened:
        report("opening", 1, 2)
        return Opened(self, self, MANIFEST)


@contextmanager
def listening(opens: Opener, *, key: str | None = None, **limits: Any) -> Iterator[str]:
    """The URL of a server in a thread, as soon as it listens."""
    settings = ServerSettings(corpus=Path("none"), index=Path("none"), port=0, **limits)
    server = http_server(create_app(settings, key=key, opens=opens), settings)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(WITHIN_S)
        assert not thread.is_alive()


@contextmanager
def serving(engine: Engine, *, key: str | None = None, **limits: Any) -> Iterator[str]:
    """The URL of a ready server over the engine."""
    with listening(engine.opens, key=key, **limits) as url:
        until(lambda: httpx.get(f"{url}/readyz").status_code == 200)
        try:
            yield url
        finally:
            engine.gate.set()
            engine.reading.set()


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def raw(url: str, content: bytes, *, last: bool = False) -> socket.socket:
    """A connection on which these bytes were sent, `last` of all."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=WITHIN_S)
    try:
        connection.sendall(content)
        if last:
            connection.shutdown(socket.SHUT_WR)
    except (BrokenPipeError, ConnectionResetError):
        assert last, "the server ended the connection"
    except OSError as error:
        assert last and error.errno == errno.ENOTCONN
    return connection


def request(*queries: str, path: str = "/retrieve", **more: Any) -> bytes:
    body = json.dumps({"queries": queries, **more}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def closed_by_server(connection: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    received = b""
    try:
        while chunk := connection.recv(65536):
            received += chunk
    except ConnectionResetError:
        pass
    connection.close()
    return received


def post(url: str, *queries: str, **more: Any) -> httpx.Response:
    return httpx.post(f"{url}/retrieve", json={"queries": queries, **more}, timeout=WITHIN_S)


def test_a_query_whose_client_left_is_not_searched() -> None:
    engine = Engine()
    with serving(engine) as url:
        engine.gate.clear()
        first = raw(url, request("first"))
        assert engine.begun.acquire(timeout=WITHIN_S)
        leaving = [raw(url, request(f"leaving{number}")) for number in range(20)]
        until(lambda: metric(url, "retrieval_queued_queries") == 20)
        for connection in [*leaving, first]:
            connection.close()
        until(lambda: metric(url, "retrieval_disconnected_total") == 21)
        assert metric(url, "retrieval_queued_queries") == 0
        engine.gate.set()
        assert post(url, "after").status_code == 200
    assert engine.searched == ["first", "after"]


def test_overload_is_429_with_retry_after_and_passes() -> None:
    engine = Engine()
    with serving(engine, max_queued=4) as url:
        engine.gate.clear()
        first = raw(url, request("first"))
        assert engine.begun.acquire(timeout=WITHIN_S)
        queued = raw(url, request("a", "b", "c", "d"))
        until(lambda: metric(url, "retrieval_queued_queries") == 4)
        refused = post(url, "one too many")
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "overloaded"
        engine.gate.set()
        for connection in (first, queued):
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
            connection.close()
        assert post(url, "one too many").status_code == 200


def test_a_bad_query_is_500_alone_and_the_server_lives_on() -> None:
    engine = Engine()
    with serving(engine) as url:
        engine.gate.clear()
        first = raw(url, request("first"))
        assert engine.begun.acquire(timeout=WITHIN_S)
        together = {query: raw(url, request(query)) for query in ("x", "bad", "y", "z")}
        until(lambda: metric(url, "retrieval_queued_queries") == 4)
        engine.gate.set()
        answers = {query: connection.recv(20)[9:12] for query, connection in together.items()}
        assert answers == {"x": b"200", "bad": b"500", "y": b"200", "z": b"200"}
        for connection in (first, *together.values()):
            connection.close()
        failed = post(url, "fine", "bad")
        assert failed.status_code == 500 and failed.json()["error"]["code"] == "search_failed"
        assert post(url, "fine").status_code == 200


def test_a_grep_whose_client_left_stops_and_others_wait_for_it() -> None:
    engine = Engine()
    with serving(engine, max_waiting=1) as url:
        engine.reading.clear()
        grep = {"pattern": "no passage has this"}
        first = raw(url, request(path="/grep", **grep))
        until(lambda: engine.read == [0, 1])
        waiting = raw(url, request(path="/grep", **grep))

        def refused() -> bool:
            answer = httpx.post(f"{url}/grep", json=grep | {"start": 5000}, timeout=WITHIN_S)
            overloaded = answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
            return overloaded and answer.json()["error"]["code"] == "overloaded"

        until(refused)
        assert post(url, "a search is not kept", topk=1).status_code == 200  # by a grep
        for connection in (first, waiting):
            connection.close()
        until(lambda: metric(url, "retrieval_disconnected_total") == 2)
        engine.reading.set()
        assert httpx.post(f"{url}/grep", json=grep | {"start": 5000}, timeout=WITHIN_S).json()["read"] == 0
        assert engine.read == [0, 1, 0]


def test_a_grep_within_its_time_says_where_to_continue() -> None:
    engine = Engine()
    with serving(engine, grep_s=1e-9) as url:
        body = {"pattern": "^.T.\\n[^t]", "topk": 3}
        answer = httpx.post(f"{url}/grep", json=body | {"start": 8}, timeout=WITHIN_S).json()
        assert answer == {"result": [], "read": 1, "next": 9}
    with serving(Engine()) as url:
        answer = httpx.post(f"{url}/grep", json=body | {"pattern": "t$", "start": 1998}, timeout=WITHIN_S).json()
        assert [hit["document"]["id"] for hit in answer["result"]] == ["1998", "1999"]
        assert (answer["read"], answer["next"]) == (2, None)
        assert {(hit["start"], hit["end"]) for hit in answer["result"]} == {(4, 5)}


def test_excluded_ids_make_room_for_the_next() -> None:
    with serving(Engine(), max_topk=20) as url:

        def ids(*queries: str, **body: Any) -> list[list[str]]:
            return [[found["id"] for found in hits] for hits in post(url, *queries, **body).json()["result"]]

        assert ids("a", topk=3, exclude=["0", "2", "never"]) == [["1", "3", "4"]]
        assert ids("a", "b", topk=2, exclude=["1"]) == [["0", "2"]] * 2
        assert ids("a", "b", topk=2, exclude=[["0"], ["1"]]) == [["1", "2"], ["0", "2"]]
        assert ids("a", topk=20, exclude=[str(row) for row in range(5)]) == [[str(row) for row in range(5, 20)]]
        assert ids("a", topk=3, exclude=[]) == [["0", "1", "2"]]
        flat = httpx.post(f"{url}/retrieve", json={"query": "a", "topk": 1, "exclude": ["0"]}, timeout=WITHIN_S).json()
        assert flat["result"][0]["docid"] == "1"
        refused = post(url, "a", "b", exclude=[["0"]])
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "invalid_request")


def test_the_key_limits_counts_and_errors_of_a_search_hold_on_each_route() -> None:
    engine = Engine()
    unheard = ("GET", "/documents/8888", None)
    routes = [("POST", "/grep", {"pattern": "t"}), ("GET", "/documents/7", None), unheard]
    with serving(engine, key=KEY, max_body_bytes=1000, max_topk=10, max_query_characters=50) as url:
        bearer = {"authorization": f"Bearer {KEY}"}

        def ask(method: str, path: str, body: Any, headers: dict[str, str]) -> httpx.Response:
            return httpx.request(method, url + path, json=body, headers=headers, timeout=WITHIN_S)

        for (method, path, body), status in zip(routes, (200, 200, 404), strict=True):
            refused = ask(method, path, body, {})
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "unauthorized")
            assert ask(method, path, body, bearer).status_code == status
        unknown = ask(*unheard, bearer).json()["error"]
        assert unknown["code"] == "unknown_document" and "'8888'" in unknown["message"] and unknown["remedy"]
        for body, status, code in (
            ({"pattern": "t" * 2000}, 413, "body_too_large"),
            ({"pattern": "t" * 60}, 422, "bad_pattern"),
            ({"pattern": "("}, 422, "bad_pattern"),
            ({"pattern": ""}, 422, "invalid_request"),
            ({"pattern": "t", "topk": 11}, 422, "topk_too_large"),
        ):
            refused = ask("POST", "/grep", body, bearer)
            assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)
        counted = httpx.get(f"{url}/metrics", headers=bearer).text
        for route, status, times in (
            ("/grep", 401, 1),
            ("/grep", 200, 1),
            ("/grep", 422, 4),
            ("/grep", 413, 1),
            ("/documents", 401, 2),
            ("/documents", 200, 1),
            ("/documents", 404, 2),
        ):
            assert f'retrieval_requests_total{{route="{route}",status="{status}"}} {times}.0\n' in counted
    with listening(loading_forever) as url:
        for method, path, body in routes:
            waiting = httpx.request(method, url + path, json=body, timeout=WITHIN_S)
            assert (waiting.status_code, waiting.json()["error"]["code"]) == (503, "not_ready")


def loading_forever(report: Report) -> Opened:
    while True:
        report("loading", 0, 0)
        time.sleep(0.01)


def test_siblings_cost_one_search() -> None:
    engine = Engine()
    with serving(engine) as url:
        engine.gate.clear()
        siblings = [raw(url, request(f" same  query{' ' * number}")) for number in range(8)]
        until(lambda: metric(url, 'retrieval_cache_queries_total{outcome="wait"}') == 7)
        engine.gate.set()
        bodies = {connection.recv(65536).partition(b"\r\n\r\n")[2] for connection in siblings}
        assert len(bodies) == 1
        for connection in siblings:
            connection.close()
        assert len(post(url, "same query", topk=2).json()["result"][0]) == 2
        assert metric(url, 'retrieval_cache_queries_total{outcome="hit"}') == 1
    assert len(engine.searched) == 1


async def test_each_request_gets_its_own_topk_out_of_one_batch() -> None:
    engine = Engine()
    with serving(engine) as url:
        engine.gate.clear()
        first = raw(url, request("first"))
        assert engine.begun.acquire(timeout=WITHIN_S)
        async with httpx.AsyncClient(timeout=WITHIN_S) as client:

            async def count(topk: int) -> int:
                body = {"queries": [f"q{topk}"], "topk": topk}
                return len((await client.post(f"{url}/retrieve", json=body)).json()["result"][0])

            asking = asyncio.gather(*map(count, range(1, 9)))
            await asyncio.to_thread(until, lambda: metric(url, "retrieval_queued_queries") == 8)
            engine.gate.set()
            assert await asking == list(range(1, 9))
        first.close()
        assert metric(url, "retrieval_search_seconds_count") == 2


def test_half_a_surrogate_pair_of_a_passage_reaches_no_client() -> None:
    engine = Engine()
    with serving(engine) as url:
        for scores in (True, False):
            found = post(url, "q", topk=10, return_scores=scores)
            assert b"ud800" not in found.content
            last = found.json()["result"][0][9]
            assert (last["document"] if scores else last)["text"] == "?"


def test_a_query_at_fault_is_422_alone_and_costs_its_own_list_among_others() -> None:
    engine = Engine()
    with serving(engine) as url:
        alone = post(url, "its own")
        assert (alone.status_code, alone.json()["error"]["code"]) == (422, "bad_query")
        assert "nested too deeply" in alone.json()["error"]["message"]
        among = post(url, "fine", "its own", "well", "its own", topk=1)
        assert [len(hits) for hits in among.json()["result"]] == [1, 0, 1, 0]
        assert among.headers[REFUSED_HEADER] == "2" and CUT_HEADER not in among.headers
        engine.gate.clear()
        first = raw(url, request("first"))
        while engine.searched[-1:] != ["first"]:
            assert engine.begun.acquire(timeout=WITHIN_S)
        together = {query: raw(url, request(query)) for query in ("x", "its own", "y")}
        until(lambda: metric(url, "retrieval_queued_queries") == 3)
        engine.gate.set()
        answers = {query: connection.recv(20)[9:12] for query, connection in together.items()}
        assert answers == {"x": b"200", "its own": b"422", "y": b"200"}
        for connection in (first, *together.values()):
            connection.close()
        assert metric(url, "retrieval_queries_refused_total") == 4


def test_an_over_long_query_is_cut_and_spoils_no_other() -> None:
    engine = Engine()
    with serving(engine, max_query_characters=100) as url:
        found = post(url, *["a" * 100] * 3, "b" * 101, "c" * 5000, topk=1)
        assert [len(hits) for hits in found.json()["result"]] == [1] * 5
        assert found.headers[CUT_HEADER] == "2" == f"{metric(url, 'retrieval_queries_cut_total'):.0f}"
        assert CUT_HEADER not in post(url, "a" * 100).headers
    assert sorted(set(map(len, engine.searched))) == [100]


HALF_OPEN = {
    "nothing": b"",
    "half a head": b"POST /retrieve HTTP/1.1\r\nHost: x\r\nContent-",
    "half a body": request("a query that is not sent")[:-9],
    "no body": b"POST /retrieve HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n",
    "a second head": request("whole") + b"POST /retr",
}


@pytest.mark.parametrize("key", [None, KEY])
def test_half_open_connections_expire(key: str | None) -> None:
    """A client that stops half way holds its connection for the time of a request, with and without the key."""
    with serving(Engine(), key=key, request_s=0.5) as url:
        connections = [raw(url, content) for content in HALF_OPEN.values() for _ in range(20)]
        for connection in connections:
            closed_by_server(connection)  # ends, or the socket's own time does
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_a_slow_search_is_no_slow_request() -> None:
    engine = Engine()
    with serving(engine, request_s=0.2) as url:
        engine.gate.clear()
        asking = raw(url, request("slow"))
        assert engine.begun.acquire(timeout=WITHIN_S)
        half = raw(url, b"POST")
        closed_by_server(half)  # opened later, expired earlier
        engine.gate.set()
        assert asking.recv(12) == b"HTTP/1.1 200"
        asking.close()


GARBAGE = {
    "endless head": b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"X: " + b"a" * (1 << 20),
    "noise": b"\x00\xff\x16\x03\x01 not http at all\r\n\r\n",
    "half a head": b"POST /retrieve HTTP/1.1\r\nHost: x\r\nContent-",
    "half a body": request("a query that is not sent")[:-9],
    "negative length": b"POST /retrieve HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    "two lengths": b"POST /retrieve HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "bad chunk": b"POST /retrieve HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "bad path": b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
}


def test_garbage_and_aborts_at_any_byte_leave_a_server_that_answers() -> None:
    engine = Engine()
    whole = request("an aborted query")
    with serving(engine) as url:
        for name, content in GARBAGE.items():
            answer = closed_by_server(raw(url, content, last=True))
            assert answer[9:10] in (b"", b"4"), (name, answer[:200])
        aborted = [raw(url, whole[:cut]) for cut in range(0, len(whole) + 1, 3)]
        for connection in aborted:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close by reset
            connection.close()
        assert post(url, "after").status_code == 200
        until(lambda: metric(url, "retrieval_queued_queries") == 0)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 422),
        (b"\xff\xfe\x00", 422),
        (b'{"queries": ["\xc3\x28"]}', 422),
        (b'{"queries": ["a"], "topk": ' + b"9" * 5000 + b"}", 422),
        (b"[" * 100_000, 422),
        (b'{"queries": ["a"], "topk": NaN}', 422),
        (b'{"queries": ["\\ud800"], "topk": "\\ud800"}', 422),
        (b'{"queries": [' + b'"a",' * 20 + b'"a"]}', 413),
        (b" " * 200_001, 413),
    ],
)
def test_what_is_no_request_has_the_status_that_means_it(content: bytes, status: int) -> None:
    with serving(Engine(), max_body_bytes=200_000, max_queries=20, max_query_characters=1000) as url:
        headers = {"content-type": "application/json"}
        response = httpx.post(f"{url}/retrieve", content=content, headers=headers, timeout=WITHIN_S)
        assert response.status_code == status
        assert set(response.json()["error"]) == {"code", "message", "remedy"}


def asked_by_our_client(url: str) -> int | None:
    """The status with which our client was refused, if it was."""

    async def ask() -> None:
        async with httpx.AsyncClient() as client:
            assert await HttpRetriever(client, url).retrieve("q", topk=1)

    try:
        asyncio.run(ask())
    except RetrieverError as error:
        return error.status
    return None


def test_with_a_key_only_health_checks_are_open(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    with serving(engine, key=KEY) as url:
        assert httpx.get(f"{url}/healthz").status_code == httpx.get(f"{url}/readyz").status_code == 200
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {KEY}"}):
            for method, path in (
                ("POST", "/retrieve"),
                ("GET", "/metrics"),
                ("GET", "/openapi.json"),
                ("GET", "/none"),
            ):
                refused = httpx.request(method, url + path, headers=headers)
                assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
                assert refused.json()["error"]["code"] == "unauthorized"
        monkeypatch.delenv(KEY_VARIABLE, raising=False)
        assert asked_by_our_client(url) == 401
        monkeypatch.setenv(KEY_VARIABLE, KEY)
        assert asked_by_our_client(url) is None
        right = {"authorization": f"Bearer {KEY}"}
        assert httpx.post(f"{url}/retrieve", json={"queries": ["a"]}, headers=right).status_code == 200
        assert httpx.get(f"{url}/metrics", headers=right).status_code == 200


@pytest.mark.parametrize("fails", [False, True])
def test_create_app_calls_back_whether_loading_succeeded(fails: bool) -> None:
    engine, calls = Engine(), list[str]()

    def opens(report: Report) -> Opened:
        if fails:
            raise RetrievalError("the index has a hole")
        return engine.opens(report)

    settings = ServerSettings(corpus=Path("none"), index=Path("none"), port=0)
    ready, failed = partial(calls.append, "ready"), partial(calls.append, "failed")
    app = create_app(settings, opens=opens, on_ready=ready, on_failure=failed)

    async def run() -> None:
        async with asyncio.timeout(WITHIN_S), app.router.lifespan_context(app):
            while not calls:
                await asyncio.sleep(0.01)

    asyncio.run(run())
    assert calls == ["failed" if fails else "ready"]


def test_while_it_loads_it_tells_how_far_it_is() -> None:
    engine, go = Engine(), threading.Event()

    def slowly(report: Report) -> Opened:
        report("building", 3, 10)
        assert go.wait(WITHIN_S)
        return engine.opens(report)

    with listening(slowly) as url:
        until(lambda: httpx.get(f"{url}/readyz").json()["progress"]["done"] == 3)
        waiting = httpx.get(f"{url}/readyz")
        assert waiting.status_code == 503 and waiting.headers["retry-after"] == "1"
        assert waiting.json()["progress"] == {"stage": "building", "done": 3, "total": 10}
        assert httpx.get(f"{url}/healthz").status_code == 200
        assert post(url, "early").status_code == 503
        go.set()
        until(lambda: httpx.get(f"{url}/readyz").status_code == 200)
        assert httpx.get(f"{url}/readyz").json() == {"status": "ready", **MANIFEST}


OWN_PROCESS = """
import sys, time
from pathlib import Path
from retrieval_server.app import create_app
from retrieval_server.app.listening import http_server
from retrieval_server.app.service import Opened
from retrieval_server.config import ServerSettings
from retrieval_server.schemas import KEY_VARIABLE, Document
from s3_agent.clients.retriever import HttpRetriever
from s3_agent.errors import RetrieverError

port, folder, never = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "never"

class Slow:
    ignores_whitespace = True
    def cost(self, query):
        return 1
    def search(self, queries, *, topk):
        (folder / "searching").touch()
        while not (folder / "go").exists():
            time.sleep(0.01)
        return [[(1, 1.0)] for _ in queries]
    def __len__(self):
        return 2
    def row_of(self, name):
        return None
    def __getitem__(self, row):
        return Document(id="1", title="T", text="t", contents="c")

def opens(report):
    while never:
        report("loading for ever", 0, 0)
        time.sleep(0.01)
    return Opened(Slow(), Slow(), {})

settings = ServerSettings(corpus=Path("c"), index=Path("i"), port=port)
http_server(create_app(settings, opens=opens), settings).run()
"""


@contextmanager
def own_process(folder: Path, *, loads: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", OWN_PROCESS, str(port), str(folder), loads], env=dict(os.environ))
    url = f"http://127.0.0.1:{port}"

    def answers(path: str, status: int) -> bool:
        try:
            return httpx.get(url + path).status_code == status
        except httpx.TransportError:
            return False

    try:
        until(lambda: answers("/readyz", 503 if loads == "never" else 200))
        yield url, process
    finally:
        process.kill()
        process.wait()


def test_sigterm_finishes_what_was_accepted(tmp_path: Path) -> None:
    with own_process(tmp_path, loads="at once") as (url, process):
        searching, queued = raw(url, request("searching")), None
        until((tmp_path / "searching").exists)
        queued = raw(url, request("queued"))
        until(lambda: metric(url, "retrieval_queued_queries") == 1)
        process.send_signal(signal.SIGTERM)
        until(lambda: not listens(url))
        (tmp_path / "go").touch()
        for connection in (searching, queued):
            assert closed_by_server(connection).startswith(b"HTTP/1.1 200")
        process.wait(timeout=WITHIN_S)


def listens(url: str) -> bool:
    try:
        raw(url, b"").close()
    except ConnectionRefusedError:
        return False
    return True


def test_sigterm_ends_a_server_that_loads(tmp_path: Path) -> None:
    with own_process(tmp_path, loads="never") as (_, process):
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=WITHIN_S)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_that_openapi_allows_or_forbids_is_a_server_error(mode: Any) -> None:
    with serving(Engine()) as url:
        seen = fuzzed(url, mode, examples=80)
    positive = mode is schemathesis.GenerationMode.POSITIVE
    for route in ("/retrieve", "/grep"):
        assert seen[route, 200 if positive else 422] > 20, seen
    assert seen["/rerank", 404 if positive else 422], seen  # this server has no reranker
    if positive:
        assert seen["/documents/{id}", 200] and seen["/documents/{id}", 404], seen
