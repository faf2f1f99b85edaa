"""No client of ours asks a proxy for this machine, and all follow the environment for others."""

import ast
import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import s3_agent
from s3_agent.clients import connections
from s3_agent.clients.chat_model import ClaudeChat, ModelSettings
from s3_agent.clients.connections import (
    LOOPBACK,
    async_client,
    client,
    get,
    is_loopback,
    proxy_of,
    sparing_loopback,
    usable_proxy,
)
from s3_agent.clients.gateway import Gateway
from s3_agent.errors import GeneratorError
from s3_agent.testing.fakes import FakeSlowPolicy
from s3_agent.testing.servers import policy_app, serve

PACKAGE = Path(s3_agent.__file__).parent


class FakeServer:
    """Answers every GET with its name, and keeps what it was asked; as a proxy it is asked for whole addresses."""

    def __init__(self, name: str) -> None:
        self.asked: list[str] = []
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                body = name.encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                asked.append(self.path)
                self.send_response(400)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FakeServer, FakeServer]]:
    """A service on this machine, and the proxy that the environment names."""
    own, proxy = FakeServer("own"), FakeServer("proxy")
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name in ("http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    yield own, proxy
    own.close()
    proxy.close()


def by_async_client(url: str) -> str:
    async def ask() -> str:
        async with async_client(timeout=10.0) as http:
            return (await http.get(url)).text

    return asyncio.run(ask())


def by_client(url: str) -> str:
    with client(timeout=10.0) as http:
        return http.get(url).text


@pytest.mark.parametrize("ask", [by_async_client, by_client, lambda url: get(url, timeout=10.0).text])
def test_this_machine_is_asked_itself_and_another_through_the_proxy(
    ask: Callable[[str], str], servers: tuple[FakeServer, FakeServer]
) -> None:
    own, proxy = servers
    assert ask(f"http://127.0.0.1:{own.port}/secret") == "own"
    assert ask(f"http://localhost:{own.port}/secret") == "own"
    assert proxy.asked == []
    assert ask("http://elsewhere.invalid/x") == "proxy"
    assert proxy.asked == ["http://elsewhere.invalid/x"] and own.asked == ["/secret"] * 2


@pytest.mark.parametrize(("calls", "passed"), [(None, 130), (3, 3)])
async def test_no_call_waits_for_a_connection_unless_a_limit_is_asked_for(calls: int | None, passed: int) -> None:
    """httpx's own default passes 100."""
    policy = FakeSlowPolicy(lambda _: "x")
    with serve(policy_app(policy)) as url:
        async with async_client(timeout=60.0, calls=calls) as http:
            body = {"prompt": [65], "max_tokens": 4, "stop": [], "model": "fake"}
            answers = [asyncio.create_task(http.post(f"{url}/v1/completions", json=body)) for _ in range(130)]
            async with asyncio.timeout(60):
                while policy.calls < passed:
                    await asyncio.sleep(0.01)
            policy.release()
            assert {answer.status_code for answer in await asyncio.gather(*answers)} == {200}
    assert policy.most_calls == passed


async def test_the_gateways_client_asks_this_machine_itself(servers: tuple[FakeServer, FakeServer]) -> None:
    own, proxy = servers
    async with Gateway(f"http://127.0.0.1:{own.port}", "key", patience_s=0.0) as gateway:
        with pytest.raises(Exception, match="unknown form"):
            await gateway.rollouts("queuing", limit=1)
    assert len(own.asked) == 1 and proxy.asked == []


async def test_claudes_client_asks_this_machine_itself(
    servers: tuple[FakeServer, FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("anthropic")
    own, proxy = servers
    monkeypatch.setenv("ANTHROPIC_API_KEY", "key")
    settings = ModelSettings(kind="anthropic", model="claude")
    chat = ClaudeChat(settings, url=f"http://127.0.0.1:{own.port}", error=GeneratorError)
    with pytest.raises(GeneratorError):
        await chat.ask([{"role": "user", "content": "q"}])
    assert len(own.asked) == 1 and proxy.asked == []


def test_the_environments_exceptions_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("https_proxy", "proxy:3128")
    monkeypatch.setenv("no_proxy", "inside.example")
    assert proxy_of("https://outside.example/v1") == "http://proxy:3128"
    assert proxy_of("https://inside.example/v1") is None
    assert proxy_of("http://outside.example/v1") is None


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.1", "127.8.8.8", "localhost", "LOCALHOST.", "a.localhost", "::1", "[::1]", "0.0.0.0"),
        *("::ffff:127.0.0.1", "0:0:0:0:0:0:0:1", "::", "2130706433"),
    ],
)
def test_this_machine_in_every_form(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "example.com", "10.0.0.1", "128.0.0.1", "localhost.x", "::2", "fe80::1%eth0"])
def test_another_machine(host: str) -> None:
    assert not is_loopback(host)


@given(st.text(max_size=20))
def test_any_text_is_a_host_or_not(host: str) -> None:
    assert is_loopback(host) in (True, False)


@pytest.mark.parametrize("named", [{"NO_PROXY": "inside.example,10.0.0.0/8"}, {"no_proxy": "fd00::/8, inside.example"}])
def test_either_spelling_counts_whatever_the_other_says(named: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    for name, value in {"NO_PROXY": "x.example", "no_proxy": "y.example", **named}.items():
        monkeypatch.setenv(name, value)
    assert proxy_of("http://inside.example/v1") is None
    assert (proxy_of("http://10.1.2.3:80/") is None) == ("NO_PROXY" in named)
    assert (proxy_of("http://[fd00::1]:80/") is None) == ("no_proxy" in named)
    assert proxy_of("http://192.0.2.1/") == "http://proxy:3128"


def test_a_proxy_that_no_client_can_use_is_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("all_proxy", "socks4://proxy:1080")
    assert proxy_of("http://outside.example/") is None
    monkeypatch.setattr(connections, "find_spec", lambda _: None)
    assert [usable_proxy(value) for value in ("socks5://p:1", "http://p:x", "p:1")] == [None, None, "http://p:1"]
    monkeypatch.setattr(connections, "find_spec", lambda _: "socksio")
    assert usable_proxy("socks5://p:1") == "socks5://p:1"  # httpx 0.28 knows socks5h as well


def test_both_spellings_name_this_machine_and_what_either_named() -> None:
    spared = sparing_loopback({"NO_PROXY": "a, b, [fe80::1], fd00::/8", "no_proxy": "c,a", "HOME": "/h"})
    assert spared["NO_PROXY"] == spared["no_proxy"] == "a,b,fe80::1,c," + ",".join(LOOPBACK)
    assert spared["HOME"] == "/h"
    assert sparing_loopback(spared) == spared


def test_proxies_that_can_not_be_used_are_left_out() -> None:
    named = {"http_proxy": "http://p:1", "HTTPS_PROXY": "p:1", "All_Proxy": "socks://p:1", "FTP_PROXY": "ftp://p:1"}
    assert sparing_loopback(named).keys() - {"NO_PROXY", "no_proxy"} == named.keys() - {"All_Proxy"}


_PART = st.one_of(
    st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12),
    st.ip_addresses().map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
    st.sampled_from(["*", ".local", "[::1]", "[::1]:80", "fd00::/8", "10.0.0.0/8", "http://x", "x:1", "all://[", "["]),
)


@settings(deadline=None)
@given(
    st.lists(_PART, max_size=5),
    st.lists(_PART, max_size=5),
    st.sampled_from(["socks5://p:1", "p", "x://", "http://p:x"]),
)
def test_every_client_can_be_made_in_what_is_handed_on(upper: list[str], lower: list[str], proxy: str) -> None:
    given_environment = {
        "NO_PROXY": ",".join(upper),
        "no_proxy": ",".join(lower),
        "all_proxy": proxy,
        "HTTP_PROXY": "http://p:1",
    }
    spared = sparing_loopback(given_environment)
    with mock.patch.dict(os.environ, spared, clear=True), httpx.Client(verify=False) as http:
        direct = http._transport_for_url(httpx.URL("http://127.0.0.1:1/"))
        assert direct is http._transport and http._transport_for_url(httpx.URL("http://[::1]:1/")) is direct


def test_no_client_is_made_elsewhere() -> None:
    """httpx's own clients and calls follow the environment's proxy to wherever it leads."""
    makers = {"AsyncClient", "Client", "get", "post", "put", "patch", "delete", "head", "request", "stream"}
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        if path.name != "connections.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in ("httpx", "requests")
        and node.func.attr in makers
    ]
    assert found == []
