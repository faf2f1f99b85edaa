"""What goes through aiohttp is what httpx itself would send and answer, and a failure says whether it was sent."""

import asyncio
import gzip
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3_agent.clients.connections import async_client
from s3_agent.clients.http import call_json
from s3_agent.clients.transport import KEEPALIVE, AiohttpTransport
from s3_agent.errors import RetrieverError

NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


class FakeServer:
    """Keeps the bytes of every request, and answers with what `answer` holds; None closes the connection instead."""

    def __init__(self, answer: bytes | None = OK, *, close: bool = False) -> None:
        self.answer, self.close = answer, close
        self.asked: list[bytes] = []
        self.connections = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
                body = b""
                if b"chunked" in fields.get(b"transfer-encoding", b""):
                    while size := int(await reader.readline(), 16):
                        body += await reader.readexactly(size)
                        await reader.readline()
                    await reader.readline()
                else:
                    body = await reader.readexactly(int(fields.get(b"content-length", b"0")))
                self.asked.append(head + body)
                if self.answer is not None:
                    writer.write(self.answer)
                    await writer.drain()
                if self.close or self.answer is None:
                    return
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    @asynccontextmanager
    async def url(self, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        port = server.sockets[0].getsockname()[1]
        try:
            yield f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        finally:
            server.close()


def _sent(request: bytes) -> tuple[bytes, list[tuple[bytes, bytes]], bytes]:
    """Its first line, its headers in any order, and its body."""
    head, _, body = request.partition(b"\r\n\r\n")
    first, *fields = head.split(b"\r\n")
    return first, sorted((name.lower(), value) for name, value in (field.split(b": ", 1) for field in fields)), body


_TOKEN = st.text(alphabet="abcXYZ-09", min_size=1, max_size=12).map(lambda name: f"x-{name}")
_VALUE = st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20)


@settings(max_examples=60, deadline=None)
@given(
    method=st.sampled_from(["GET", "POST"]),
    path=st.text(max_size=12).map(lambda path: "/" + path),
    query=st.dictionaries(st.text(max_size=6), st.text(max_size=6), max_size=3),
    headers=st.dictionaries(_TOKEN, _VALUE, max_size=3),
    body=st.binary(max_size=200),
)
def test_a_request_arrives_as_from_httpx_itself(
    method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes
) -> None:
    async def both() -> list[bytes]:
        server = FakeServer()
        async with server.url() as url:
            for transport in (httpx.AsyncHTTPTransport(), AiohttpTransport(verify=True, calls=None)):
                async with httpx.AsyncClient(transport=transport) as http:
                    try:
                        request = http.build_request(method, url + path, params=query, headers=headers, content=body)
                    except (httpx.InvalidURL, UnicodeEncodeError):
                        return [b" / \r\n\r\n"] * 2
                    assert (await http.send(request)).json() == {}
        return server.asked

    theirs, ours = asyncio.run(both())
    assert _sent(ours) == _sent(theirs)


async def test_a_body_in_parts_arrives_whole() -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"one "
        yield b"two"

    server = FakeServer()
    async with server.url() as url, async_client(timeout=10.0) as http:
        await http.post(url, content=parts())
    assert server.asked[0].endswith(b"one two") and b"chunked" in server.asked[0]


@pytest.mark.parametrize(
    ("head", "body", "text"),
    [
        ("content-encoding: gzip", gzip.compress(b"packed"), "packed"),
        ("transfer-encoding: chunked", b"3\r\none\r\n4\r\n two\r\n0\r\n\r\n", "one two"),
        ("x-empty: ", b"", ""),
        ("location: http://elsewhere.invalid/", b"", ""),
        ("set-cookie: a=b", b"", ""),
        (f"x-long: {'a' * 20_000}", b"", ""),
    ],
)
async def test_an_answer_is_read_as_by_httpx_itself(head: str, body: bytes, text: str) -> None:
    length = "" if "chunked" in head else f"content-length: {len(body)}\r\n"
    status = "307 Elsewhere" if "location" in head else "200 OK"
    server = FakeServer(f"HTTP/1.1 {status}\r\n{head}\r\n{length}\r\n".encode() + body)
    async with server.url() as url, async_client(timeout=10.0) as http, httpx.AsyncClient(trust_env=False) as plain:
        ours, theirs = await http.get(url), await plain.get(url)
    assert ours.text == theirs.text == text
    assert (ours.status_code, ours.headers.raw) == (theirs.status_code, theirs.headers.raw)


async def test_connections_are_used_again_and_a_closed_one_is_not() -> None:
    server = FakeServer()
    async with server.url() as url, async_client(timeout=10.0) as http:
        for _ in range(3):
            await http.post(url, json={})
        assert server.connections == 1
        server.close = True
        await http.post(url, json={})
        server.close = False
        await asyncio.sleep(0)
        assert (await http.post(url, json={})).json() == {}
    assert server.connections == 2 and len(server.asked) == 5


async def test_a_server_that_is_gone_without_a_word_is_noticed_by_the_kernel() -> None:
    server = FakeServer()
    async with server.url() as url, async_client(timeout=10.0) as http:
        await http.get(url)
        [connection] = _sockets_to(int(url.rpartition(":")[2]))
        with connection:
            assert [connection.getsockopt(level, name) for level, name, _ in KEEPALIVE] == [1, 60, 15, 4]


def _sockets_to(port: int) -> list[socket.socket]:
    """This process's connections to a port."""
    found = []
    for number in Path("/proc/self/fd").iterdir():
        try:
            one = socket.fromfd(int(number.name), socket.AF_INET, socket.SOCK_STREAM)
            to = one.getpeername()
        except OSError:
            continue
        found.append(one) if to[1:] == (port,) else one.close()
    return found


async def _failure(url: str, **options: float) -> Exception:
    """The error of a POST; httpx's own sender must agree on whether it may have been carried out."""
    errors = []
    timeout = httpx.Timeout(**{"timeout": 10.0, **options})
    for client in (async_client(timeout=timeout), httpx.AsyncClient(timeout=timeout, trust_env=False)):
        async with client as http:
            with pytest.raises(httpx.TransportError) as caught:
                await http.post(url, json={"a": 1})
        errors.append(caught.value)
    ours, theirs = errors
    assert isinstance(ours, NOT_SENT) == isinstance(theirs, NOT_SENT), f"{ours!r} {theirs!r}"
    return ours


async def test_what_was_never_sent_is_known_as_that() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert isinstance(await _failure(f"http://127.0.0.1:{port}/"), httpx.ConnectError)
    assert isinstance(await _failure("http://no-such-host.invalid/"), httpx.ConnectError)
    # A server whose queue is full takes no connection.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.socket() as first, socket.socket() as second:
        for one in (first, second):
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        address = f"http://127.0.0.1:{full.getsockname()[1]}/"
        assert isinstance(await _failure(address, connect=0.3), httpx.ConnectTimeout)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nhalf",
        b"what?\r\n\r\n",
    ],
)
async def test_what_may_have_been_carried_out_is_known_as_that(answer: bytes | None) -> None:
    server = FakeServer(answer, close=True)
    async with server.url() as url:
        assert not isinstance(await _failure(url), NOT_SENT)
    assert len(server.asked) == 2, "no POST is sent twice"


async def test_a_server_that_does_not_answer_in_time_may_have_carried_it_out() -> None:
    server = FakeServer(b"")
    async with server.url() as url:
        assert isinstance(await _failure(url, read=0.2), httpx.ReadTimeout)


async def test_a_call_that_must_not_be_made_twice_is_not() -> None:
    server = FakeServer(None)
    async with server.url() as url, async_client(timeout=10.0) as http:
        with pytest.raises(RetrieverError, match="may have been carried out"):
            await call_json(http, "POST", url, error=RetrieverError, body={}, repeatable=False)
    assert len(server.asked) == 1


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "http:///x", "no-scheme/x"])
async def test_an_address_that_is_none_is_an_error_of_httpx(url: str) -> None:
    async with async_client(timeout=1.0) as http:
        with pytest.raises((httpx.UnsupportedProtocol, httpx.LocalProtocolError)):
            await http.get(url)


async def test_a_key_with_a_line_break_is_an_error_of_httpx() -> None:
    server = FakeServer()
    async with server.url() as url, async_client(timeout=1.0, headers={"Authorization": "Bearer a\nb"}) as http:
        with pytest.raises(httpx.LocalProtocolError):
            await http.get(url)
    assert server.asked == []


async def test_a_name_and_password_in_the_address_are_a_header() -> None:
    server = FakeServer()
    async with server.url() as url, async_client(timeout=10.0) as http:
        await http.get(url.replace("http://", "http://user:pass@"))
    assert b"Basic dXNlcjpwYXNz" in server.asked[0]


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    """The context of a server for 127.0.0.1, and the certificate that vouches for it."""
    openssl = shutil.which("openssl") or pytest.skip("needs openssl")
    key, vouches = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = [openssl, "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    named = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*made, *named, "-keyout", key, "-out", vouches], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(vouches, key)
    return context, vouches


async def test_a_server_that_nobody_vouches_for_gets_no_request(certificate: tuple[ssl.SSLContext, Path]) -> None:
    context, authority = certificate
    server = FakeServer()
    async with server.url(tls=context) as url:
        assert isinstance(await _failure(url), httpx.ConnectError)
        assert server.asked == []
        async with async_client(timeout=10.0, verify=ssl.create_default_context(cafile=str(authority))) as http:
            assert (await http.get(url)).json() == {}
    assert len(server.asked) == 1
