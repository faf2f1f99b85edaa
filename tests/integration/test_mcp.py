"""The tools for assistants, with the official client over HTTP and over stdio, and with curl."""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from retrieval_server.app import create_app
from retrieval_server.config import ServerSettings
from retrieval_server.schemas import KEY_VARIABLE
from tests.served_corpus import free_port, serving_rows

KEY = "the-key"
LONG = "river " * 30
ROWS = [
    {"id": "7", "contents": f'"Glomma"\nGlomma is the longest river of Norway. {LONG}'},
    {"id": "https://a.org/x?y=1#z", "contents": '"Klar\u00e4lven"\nIt begins in Norway and ends in Sweden.'},
    {"id": "3", "contents": '"Oslo"\nOslo is the capital of Norway, founded in 1040.'},
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, KEY)
        with serving_rows(tmp_path_factory.mktemp("mcp"), ROWS, "--mcp", "--mcp-characters", "60", "--topk", "2") as at:
            yield at


@asynccontextmanager
async def over_http(url: str, dialect: str = "", key: str = KEY) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx2.AsyncClient(headers=headers) as http:
        transport = streamable_http_client(f"{url}/mcp{dialect and '/'}{dialect}", http_client=http)
        async with Client(transport) as client:  # pyright: ignore[reportArgumentType]
            yield client


@asynccontextmanager
async def over_stdio(url: str, dialect: str = "own", *options: str, key: str = KEY) -> AsyncIterator[Client]:
    command = ["-m", "retrieval_server", "mcp", "--url", url, "--characters", "60", "--dialect", dialect, *options]
    environment = {**os.environ, KEY_VARIABLE: key}
    async with Client(StdioServerParameters(command=sys.executable, args=command, env=environment)) as client:
        yield client


@asynccontextmanager
async def connected(way: str, url: str, dialect: str = "own") -> AsyncIterator[Client]:
    over = over_stdio(url, dialect) if way == "stdio" else over_http(url, "" if dialect == "own" else dialect)
    async with over as client:
        yield client


def text_of(result: Any) -> str:
    return "\n".join(block.text for block in result.content)


@pytest.mark.parametrize("way", ["http", "stdio"])
async def test_the_official_client_searches_reads_and_greps(url: str, way: str) -> None:
    async with connected(way, url) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert sorted(tools) == ["get_document", "grep", "search"]
        for tool in tools.values():
            assert tool.annotations is not None and tool.annotations.read_only_hint and tool.output_schema
            assert tool.description
        assert tools["search"].input_schema["required"] == ["query"]

        found = (await client.call_tool("search", {"query": "longest river"})).structured_content
        assert found is not None
        first = found["hits"][0]
        assert (first["docid"], first["title"]) == ("7", "Glomma") and first["score"] > 0
        assert len(first["text"]) == 61 and first["text"].endswith("…")
        everything = await client.call_tool("search", {"query": "Norway", "topk": 3})
        assert len(everything.structured_content["hits"]) == 3, "more than the server's own topk"
        assert json.loads(text_of(everything)) == everything.structured_content, "a model reads the same"
        whole = (await client.call_tool("get_document", {"docid": "7"})).structured_content
        assert whole is not None and whole["text"].endswith("river ") and whole["title"] == "Glomma"
        odd = (await client.call_tool("get_document", {"docid": "https://a.org/x?y=1#z"})).structured_content
        assert odd is not None and odd["title"] == "Klar\u00e4lven"

        matches = (
            await client.call_tool("grep", {"pattern": r"[0-9]{4}|sweden", "ignore_case": True})
        ).structured_content
        assert matches is not None and matches["next"] is None
        assert [(hit["docid"], hit["match"]) for hit in matches["hits"]] == [
            ("https://a.org/x?y=1#z", "Sweden"),
            ("3", "1040"),
        ]
        assert "founded in 1040." in matches["hits"][1]["around"]
        part = (await client.call_tool("grep", {"pattern": "Norway", "topk": 1})).structured_content
        assert part is not None and part["next"] == 1
        rest = (await client.call_tool("grep", {"pattern": "Norway", "start": part["next"]})).structured_content
        assert rest is not None and [hit["docid"] for hit in rest["hits"]] == ["https://a.org/x?y=1#z", "3"]


@pytest.mark.parametrize("way", ["http", "stdio"])
async def test_what_goes_wrong_is_told_to_the_model(url: str, way: str) -> None:
    async with connected(way, url) as client:
        for tool, arguments, told in [
            ("get_document", {"docid": "unknown"}, "no passage has the id 'unknown' (take an id from a search)"),
            ("grep", {"pattern": "(a"}, "the pattern is not a regular expression"),
            ("grep", {"pattern": r"(a)\1"}, "without look-around and back-references"),
            ("search", {"query": "x", "topk": 100000}, "topk is 100000 (ask for at most 1000)"),
            ("search", {"query": "x", "topk": 0}, "greater than or equal to 1"),
            ("search", {}, "query"),
        ]:
            result = await client.call_tool(tool, arguments)
            assert result.is_error and told in text_of(result)
        assert not (await client.call_tool("search", {"query": ""})).is_error


@pytest.mark.parametrize("way", ["http", "stdio"])
async def test_clients_of_other_servers_find_their_names_and_shapes(url: str, way: str) -> None:
    async with connected(way, url, "browsecomp") as client:
        found = await client.call_tool("search", {"query": "capital"})
        assert found.structured_content["result"][0].keys() == {"docid", "score", "snippet"}
        assert found.structured_content["result"][0]["docid"] == "3"
        document = await client.call_tool("get_document", {"docid": "3"})
        assert document.structured_content == {"docid": "3", "text": ROWS[2]["contents"]}
    async with connected(way, url, "pyserini") as client:
        arguments = {"query": {"qid": "1", "query_txt": "capital"}, "index": "msmarco", "hits": 1, "parse": True}
        found = await client.call_tool("search", arguments)
        line, _, document = text_of(found).partition("\n")
        assert line.startswith("DocID: 3 | Score: ") and document == ROWS[2]["contents"]
        assert text_of(await client.call_tool("get_document", {"docid": "3", "index": "x"})) == ROWS[2]["contents"]
        assert text_of(await client.call_tool("list_indexes", {})) == "bm25"
    async with connected(way, url, "openai") as client:
        [row, *_] = json.loads(text_of(await client.call_tool("search", {"query": "Sweden"})))["results"]
        assert row == {"id": "https://a.org/x?y=1#z", "title": "Klar\u00e4lven", "url": "https://a.org/x?y=1#z"}
        fetched = json.loads(text_of(await client.call_tool("fetch", {"id": row["id"]})))
        assert fetched.keys() == {"id", "title", "text", "url", "metadata"} and "Sweden" in fetched["text"]


CALL = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/call",
    "params": {"name": "search", "arguments": {"query": "capital"}},
}


@pytest.mark.parametrize("accept", [[], ["-H", "Accept: application/json"]])
def test_curl_calls_a_tool_without_any_handshake_or_redirect(url: str, accept: list[str]) -> None:
    told = ["-H", f"Authorization: Bearer {KEY}", "-H", "Content-Type: application/json", *accept]
    command = ["curl", "-sS", "--noproxy", "*", "-w", "\n%{http_code}", *told, "-d", json.dumps(CALL), f"{url}/mcp"]
    body, _, status = subprocess.run(command, capture_output=True, text=True, check=True).stdout.rpartition("\n")
    assert status == "200"
    assert json.loads(body)["result"]["structuredContent"]["hits"][0]["docid"] == "3"


@pytest.mark.parametrize("path", ["/mcp", "/mcp/browsecomp", "/mcp/pyserini", "/mcp/openai"])
def test_every_address_wants_the_key_and_refuses_foreign_hosts(url: str, path: str) -> None:
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}) as http:
        assert http.post(path, json=CALL).status_code == 200
        assert http.post(path, json=CALL, headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert http.post(path, json=CALL, headers={"Host": "evil.example"}).status_code == 421
        assert http.post(path, json=CALL, headers={"Origin": "http://evil.example"}).status_code == 403
    assert httpx.post(f"{url}{path}", json=CALL).status_code == 401


async def test_a_wrong_key_or_a_server_that_is_away_is_told_over_stdio(url: str) -> None:
    async with over_stdio(url, key="wrong") as client:
        result = await client.call_tool("search", {"query": "x"})
        assert result.is_error and "the key is missing or wrong" in text_of(result)
    async with over_stdio(f"http://127.0.0.1:{free_port()}") as client:
        assert (await client.list_tools()).tools, "the tools are there before the server is"
        result = await client.call_tool("search", {"query": "x"})
        assert result.is_error and "the retrieval server does not answer: ConnectError" in text_of(result)


async def test_without_the_option_there_is_no_such_address() -> None:
    app = create_app(ServerSettings(corpus=Path("none"), index=Path("none")))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as http:
        assert (await http.post("/mcp", json=CALL)).status_code == 404


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--url", "x"], "is not an http address"),
        ([], "--url"),
        (["--url", "http://a", "--characters", "0"], "at least 1"),
    ],
)
def test_wrong_options_are_refused(arguments: list[str], told: str) -> None:
    done = subprocess.run([sys.executable, "-m", "retrieval_server", "mcp", *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and told in done.stderr and not done.stdout
