#!/usr/bin/env bash
# With httpx-aiohttp 0.2.0, an httpx client reports an answer that was lost as a `ConnectTimeout`. The server has received
# the whole POST, but a caller that repeats requests which were never sent (their connection timed out) has it carried
# out twice. httpx's own transport reports a `RemoteProtocolError`. With `Limits(max_connections=None)`, 100 calls pass
# at a time and not any number.
#
# Seen with httpx-aiohttp 0.2.0, httpx 0.28.1, aiohttp 3.14.5, Python 3.12, Linux x86-64. Fails when that changes. Needs
# Python 3.12 and PyPI; installs into a temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.12}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "httpx-aiohttp==0.2.0" "httpx==0.28.1" "aiohttp==3.14.5"
cat >"$folder/look.py" <<'PYTHON'
import asyncio, sys
from importlib.metadata import version

import httpx
from httpx_aiohttp import AiohttpTransport

received = waiting = 0


async def serve(reader, writer):
    """Receives a whole POST, and closes the connection instead of answering; `/held` waits."""
    global received, waiting
    head = await reader.readuntil(b"\r\n\r\n")
    if head.startswith(b"GET /held"):
        waiting += 1
        await asyncio.sleep(60)
    await reader.readexactly(2)
    received += 1
    writer.close()


async def quietly(reader, writer):
    try:
        await serve(reader, writer)
    except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
        writer.close()


async def lost(url, transport):
    async with httpx.AsyncClient(transport=transport) as http:
        try:
            await http.post(url, content=b"{}")
        except httpx.TransportError as error:
            return type(error).__name__


async def at_a_time(url, transport):
    async with httpx.AsyncClient(transport=transport, timeout=60) as http:
        calls = [asyncio.create_task(http.get(f"{url}/held")) for _ in range(130)]
        await asyncio.sleep(2)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    return waiting


async def main():
    global waiting
    server = await asyncio.start_server(quietly, "127.0.0.1", 0, backlog=1024)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    limits = httpx.Limits(max_connections=None)
    made = lambda: (httpx.AsyncHTTPTransport(limits=limits), AiohttpTransport(limits=limits))
    errors = [await lost(url, transport) for transport in made()]
    print("httpx-aiohttp", version("httpx-aiohttp"), "httpx", version("httpx"), "aiohttp", version("aiohttp"))
    print(received, "POSTs were received; a lost answer is, for httpx and for httpx-aiohttp:", errors)
    passed = []
    for transport in made():
        waiting = 0
        passed.append(await at_a_time(url, transport))
    print("calls at a time without a limit, of 130:", passed)
    sys.exit(errors != ["RemoteProtocolError", "ConnectTimeout"] or passed != [130, 100] or received != 2)


asyncio.run(main())
PYTHON
"$folder/venv/bin/python" "$folder/look.py"
