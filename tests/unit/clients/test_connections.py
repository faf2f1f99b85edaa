"""No client of ours asks a proxy for this machine, and all follow the environment for others."""

import ast
import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import retrieval_server
import s3_agent
from s3_agent.clients.chat_model import ClaudeChat, ModelSettings
from s3_agent.clients.connections import async_client, client, get
from s3_agent.clients.gateway import Gateway
from s3_agent.errors import GeneratorError
from s3_agent.testing.fakes import FakeSlowPolicy
from s3_agent.testing.servers import policy_app, serve


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


def test_every_client_of_ours_names_its_transport() -> None:
    """A client of httpx without one, and its functions, ask the environment's proxy for this machine too."""
    functions = {"get", "post", "put", "patch", "delete", "head", "request", "stream"}
    found = [
        f"{path}:{node.lineno}"
        for package in (s3_agent, retrieval_server)
        for path in Path(package.__file__ or "").parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in ("httpx", "requests")
        and (
            node.func.attr in functions
            or (node.func.attr in ("AsyncClient", "Client") and "transport" not in {word.arg for word in node.keywords})
        )
    ]
    assert found == []
