"""Measures rollouts per second through the real `agl-server`: our pool, AGL's stock controller, the bare gateway.

    python benchmarks/rollout_throughput.py [--processes 128] [--rollouts 3000]

`ratio` compares a native agent in our pool with an env-contract class that makes the same requests under the stock
local controller with its best settings; `ratio_env_class` uses the same class under both. `gateway_share` is our native
rate as a share of the rate at which the gateway answers the same requests of a raw-socket client. `four_calls` is a
rollout of four policy calls, while the real trainer's manager polls, fetches and deletes.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.real_gateway import KEY, GatewayApi, real_gateway  # noqa: E402
from s3_agent.testing.fakes import FakePolicy  # noqa: E402
from s3_agent.testing.servers import policy_app, serve  # noqa: E402

ENV_CLASS, NATIVE = "benchmarks.agents:Trivial", "benchmarks.native_agents:TrivialNative"
CALLS_CLASS, CALLS_NATIVE = "benchmarks.agents:FourCalls", "benchmarks.native_agents:FourCallsNative"
STOCK_SETTINGS = [(0.05, 50), (0.5, 50), (0.05, 4)]  # (seconds between its polls, maximum of processes); it lists 50
CONNECTIONS = 32
LIST_EVERY = 128
TRAINED = 128  # the trainer's manager requests each rollout in turn, so its time grows with their number


def _request(method: str, path: str, host: str, body: dict[str, Any] | None = None) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def _bare(gateway: GatewayApi, count: int) -> float:
    """The gateway's rate for the requests of a pool, including the request that queues the rollouts.

    These are the claim, reward and end of each rollout, and a list at intervals.
    """
    address = urlsplit(gateway.url)
    started = time.monotonic()
    rollouts = gateway.enqueue(*({"number": number} for number in range(count)), agent_class=NATIVE)
    left = iter(enumerate(rollouts))

    async def connection() -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)

        async def ask(data: bytes) -> None:
            writer.write(data)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 20"), head
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
            await reader.readexactly(int(length.partition(b":")[2]))

        for number, rollout_id in left:
            path, attempt = f"/api/rollouts/{rollout_id}", f"bare-{number}"
            if number % LIST_EVERY == 0:
                await ask(_request("GET", f"/api/rollouts?state_in=queuing&limit={2 * LIST_EVERY}", address.netloc))
            states = ({"state": state, "last_attempt_id": attempt} for state in ("running", "succeeded"))
            claim, end = (_request("PATCH", path, address.netloc, {"status": status}) for status in states)
            event = {"event_type": "reward", "data": {"value": 1.0, "source": "agent"}}
            await ask(claim)
            await ask(_request("POST", f"{path}/attempt/{attempt}/events", address.netloc, event))
            await ask(end)
        writer.close()

    await asyncio.gather(*(connection() for _ in range(CONNECTIONS)))
    rate = count / (time.monotonic() - started)
    gateway.delete(rollouts)
    return rate


@contextmanager
def _process(command: list[str], log: Path) -> Iterator[None]:
    """Run a process during the block and stop it afterwards."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "AGL_KEY": KEY}, stdout=output, stderr=output)
    try:
        yield
        if process.poll() is not None:
            raise RuntimeError(f"the process ended unexpectedly: {log.read_text()[-2000:]}")
    finally:
        process.terminate()
        process.wait()


def _pool(gateway: GatewayApi, folder: Path, processes: int) -> list[str]:
    return [
        *(sys.executable, "-m", "s3_agent.cli", "workers", "--gateway", gateway.url, "--pool-id", "benchmark"),
        *("--processes", str(processes), "--concurrency", "1", "--plain", "--episodes", str(folder / "episodes.jsonl")),
        *("--native-agent", NATIVE, "--native-agent", CALLS_NATIVE),
    ]


def _stock(gateway: GatewayApi, folder: Path, poll_s: float, most: int) -> list[str]:
    return [
        *(sys.executable, "-m", "agentlightning.controller", "runner_type=local"),
        *(f"agl_server.url={gateway.url}", f"agl_server.key={KEY}"),
        *(f"local_runner.poll_interval={poll_s}", f"local_runner.maximum_size={most}"),
        *(f"hydra.run.dir='{folder}'", "hydra.output_subdir=null"),
        *("hydra/job_logging=none", "hydra/hydra_logging=none"),
    ]


def _rate(gateway: GatewayApi, agent_class: str, count: int) -> float:
    """Rollouts per second, including the request that queues them."""
    before, started = gateway.ended(), time.monotonic()
    rollouts = gateway.enqueue(*({"number": number} for number in range(count)), agent_class=agent_class)
    while gateway.ended() < before + count:
        time.sleep(0.1)
    rate = count / (time.monotonic() - started)
    unfinished = {gateway.status(rollout_id)["state"] for rollout_id in rollouts} - {"succeeded"}
    if unfinished:
        raise RuntimeError(f"not all succeeded: {unfinished}")
    gateway.delete(rollouts)
    return rate


def _trained_rate(gateway: GatewayApi, agent_class: str, count: int) -> float:
    """Rollouts per second for the trainer: including fetching the events and deleting the rollout."""
    from agentlightning.verl.agl_rollout_manager import AglRolloutManager

    manager = AglRolloutManager(
        agl_base_url=gateway.url, agl_key=KEY, model="none", step=0, local_agent_class=agent_class
    )
    started = time.monotonic()
    completed = manager.enqueue_and_wait_until_completed({"number": list(range(count))}, is_train=True)
    seconds = time.monotonic() - started
    assert all(each.final_reward == 1.0 and len(each.triplets or ()) == 4 for each in completed)
    return count / seconds


def _warm(gateway: GatewayApi, agent_class: str, count: int) -> None:
    _rate(gateway, agent_class, count)


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=128)
    parser.add_argument("--rollouts", type=int, default=3000, help="rollouts of the native agent per round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    stdout, sys.stdout = sys.stdout, sys.stderr  # the trainer's manager prints
    with (
        tempfile.TemporaryDirectory() as name,
        serve(policy_app(FakePolicy(lambda _: "x" * 32))) as policy_url,
        real_gateway(Path(name), policy_url=policy_url) as gateway,
    ):
        folder = Path(name)
        bare, native, forked, stock = [], [], [], {}
        for _ in range(options.rounds):
            bare.append(asyncio.run(_bare(gateway, options.rollouts)))
            with _process(_pool(gateway, folder, options.processes), folder / "pool.log"):
                _warm(gateway, NATIVE, options.processes * 2)
                native.append(_rate(gateway, NATIVE, options.rollouts))
        with _process(_pool(gateway, folder, options.processes), folder / "pool.log"):
            _warm(gateway, ENV_CLASS, options.processes * 2)
            forked = [_rate(gateway, ENV_CLASS, options.rollouts // 4) for _ in range(options.rounds)]
            _warm(gateway, CALLS_NATIVE, options.processes * 2)
            calls = {
                "native": _rate(gateway, CALLS_NATIVE, options.rollouts // 4),
                "native_trained": _trained_rate(gateway, CALLS_NATIVE, TRAINED),
                "env_class_trained": _trained_rate(gateway, CALLS_CLASS, TRAINED),
            }
        for poll_s, most in STOCK_SETTINGS:
            with _process(_stock(gateway, folder, poll_s, most), folder / "stock.log"):
                _warm(gateway, ENV_CLASS, 1)
                stock[f"poll {poll_s} s, at most {most}"] = _rate(gateway, ENV_CLASS, 50)
        best = max(stock, key=lambda each: stock[each])
        poll_s, most = STOCK_SETTINGS[list(stock).index(best)]
        with _process(_stock(gateway, folder, poll_s, most), folder / "stock.log"):
            calls["stock_trained"] = _trained_rate(gateway, CALLS_CLASS, TRAINED)
    measured = {name: statistics.median(rates) for name, rates in (("bare", bare), ("ours", native), ("env", forked))}
    result = {
        "ratio": measured["ours"] / stock[best],
        "ratio_env_class": measured["env"] / stock[best],
        "gateway_share": statistics.median(ours / alone for ours, alone in zip(native, bare, strict=True)),
        "rollouts_per_s": {"native": native, "env_class": forked, "stock": stock, "bare_gateway": bare},
        "four_calls_per_s": calls,
        "four_calls_ratio": calls["native_trained"] / calls["stock_trained"],
        "four_calls_ratio_env_class": calls["env_class_trained"] / calls["stock_trained"],
        "processes": options.processes,
        "cores": os.cpu_count(),
    }
    print(json.dumps(_rounded(result)), file=stdout)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, 3) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
