#!/usr/bin/env bash
# The gateway of Agent Lightning 1.0.2 passes 100 policy calls at a time: its client is an httpx.AsyncClient with the
# default limits. Further calls wait inside it, and /proxy/state counts them as `inflight`, so that the number of passed
# calls is not visible from outside. The client's timeout of 300 s includes the wait, and a call that exceeds it is made
# again. Of 480 rollouts with one call of 10 s each, the last ends after 50 s and not after 10.
#
# Seen with agentlightning 1.0.2, httpx 0.28.1, Python 3.12, Linux x86-64: of 130 calls, 100 reach the policy server and
# 130 are inflight. Fails when that changes. Needs Python 3.12 and PyPI; installs into a temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.12}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "agentlightning==1.0.2" "httpx==0.28.1"
cat >"$folder/look.py" <<'PYTHON'
import asyncio, json, socket, sys
from importlib.metadata import version

import httpx

CALLS, SECONDS = 130, 3.0
now = most = 0


async def policy(reader, writer):
    """A fake policy server: every call takes SECONDS."""
    global now, most
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
    await reader.readexactly(int(length.partition(b":")[2]))
    now, most = now + 1, max(most, now + 1)
    await asyncio.sleep(SECONDS)
    now -= 1
    body = json.dumps({"choices": []}).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()
    writer.close()


async def main():
    server = await asyncio.start_server(policy, "127.0.0.1", 0, backlog=512)
    endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["host=127.0.0.1", f"port={port}", "key=k", "default_proxy.model_name=m", "hydra.run.dir=" + sys.argv[1]]
    command = [sys.executable, "-m", "agentlightning.server", *options]
    gateway = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL)
    limits, base = httpx.Limits(max_connections=None), f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient(
            base_url=base, headers={"Authorization": "Bearer k"}, limits=limits, timeout=120, trust_env=False
        ) as http:
            while True:
                try:
                    (await http.get("/healthz")).raise_for_status()
                    break
                except httpx.TransportError:
                    await asyncio.sleep(0.1)
            await http.post("/api/models", json=[{"model": "m", "endpoint": endpoint}])
            [rollout] = (await http.post("/api/rollouts", json=[{"input": {}}])).json()
            path = f"/proxy/rollout/{rollout['rollout_id']}/attempt/a/mode/train/openai/v1/completions"
            calls = [asyncio.create_task(http.post(path, json={"prompt": "x"})) for _ in range(CALLS)]
            inflight = 0
            while not all(call.done() for call in calls):
                inflight = max(inflight, (await http.get("/proxy/state")).json()["inflight"])
                await asyncio.sleep(0.1)
            assert {call.result().status_code for call in calls} == {200}
    finally:
        gateway.terminate()
        await gateway.wait()
    print("agentlightning", version("agentlightning"), "calls", CALLS, "at the policy server", most, "inflight", inflight)
    sys.exit((most, inflight) != (100, CALLS))


asyncio.run(main())
PYTHON
"$folder/venv/bin/python" "$folder/look.py" "$folder/hydra"
