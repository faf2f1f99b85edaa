#!/usr/bin/env bash
# According to its documentation, httpx's `max_keepalive_connections` limits idle connections, but httpcore 1.0.9 counts
# busy ones too: with 3 calls in progress and a limit of 2, a single idle connection is closed and the next call opens
# another. Without a limit, each call checks every idle connection, and for each of them all connections: 240 answers
# that leave their connections idle take about fifty times the processor time that they take with a limit of 20.
#
# Seen with httpx 0.28.1, httpcore 1.0.9, Python 3.12, Linux x86-64: 5 calls one after the other open 5 connections
# during 3 other calls, and 1 without them; 5.6 and 0.06 s of processor time. Fails when that changes. Needs Python 3.12
# and PyPI; installs into a temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.12}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "httpx==0.28.1" "httpcore==1.0.9"
cat >"$folder/look.py" <<'PYTHON'
import asyncio, sys, time
from importlib.metadata import version

import httpx

opened = 0
held = asyncio.Event()


async def serve(reader, writer):
    """Answers every request on a connection that stays open; `/held` when the others are done."""
    global opened
    opened += 1
    while head := await reader.readuntil(b"\r\n\r\n"):
        if head.startswith(b"GET /held"):
            await held.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()


async def quietly(reader, writer):
    try:
        await serve(reader, writer)
    except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
        writer.close()


async def connections(url, *, busy):
    """How many connections 5 calls one after the other need beside `busy` calls that are under way."""
    global opened
    opened = 0
    held.clear()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=2, keepalive_expiry=60)
    async with httpx.AsyncClient(limits=limits, trust_env=False) as http:
        under_way = [asyncio.create_task(http.get(f"{url}/held")) for _ in range(busy)]
        while opened < busy:
            await asyncio.sleep(0.01)
        for _ in range(5):
            await http.get(url)
        needed = opened - busy
        held.set()
        await asyncio.gather(*under_way)
    return needed


async def seconds(url, *, kept):
    """For 240 calls at a time, after 240 have left their connections idle."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=kept, keepalive_expiry=60)
    async with httpx.AsyncClient(limits=limits, trust_env=False, timeout=60) as http:
        for _ in range(2):
            held.clear()
            calls = [asyncio.create_task(http.get(f"{url}/held")) for _ in range(240)]
            await asyncio.sleep(2)
            held.set()
            started = time.process_time()
            await asyncio.gather(*calls)
    return time.process_time() - started


async def main():
    server = await asyncio.start_server(quietly, "127.0.0.1", 0, backlog=1024)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    counts = [await connections(url, busy=busy) for busy in (3, 0)]
    print("httpx", version("httpx"), "httpcore", version("httpcore"), "connections beside 3 busy ones, beside none:", counts)
    times = [await seconds(url, kept=kept) for kept in (None, 20)]
    print("processor seconds for 240 answers, any number kept idle and 20:", [round(each, 2) for each in times])
    sys.exit(counts != [5, 1] or times[0] < 2 * times[1])


asyncio.run(main())
PYTHON
"$folder/venv/bin/python" "$folder/look.py"
