"""Measures policy calls in flight and rollouts per second by rollouts at a time, for the stock gateway and ours.

    python benchmarks/gateway_ceiling.py [--rollouts 100 240 480] [--call-s 10]      # about two minutes

Both gateways are real, each in a separate process, and so is our worker pool, which is configured as if either passed
all calls. The policy server is a fake (`FakeSlowPolicy`) that sleeps `--call-s` seconds in each call; a rollout is one
call, by the client of our agents. All rollouts of a level are queued together, and the time is measured from then to
the end of the last. `calls_in_flight` is the maximum that the fake received at a time from our gateway at the highest
level, `over_stock` the ratio of the two rates there. `others_share` is the share of the machine that other programs
used meanwhile.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.real_gateway import KEY, GatewayApi, real_gateway  # noqa: E402
from benchmarks.retrieval_throughput import busy  # noqa: E402
from s3_agent.agl.cpu.precision import processor_name  # noqa: E402
from s3_agent.testing.fakes import FakeSlowPolicy  # noqa: E402
from s3_agent.testing.servers import policy_app, serve  # noqa: E402

AGENT = "benchmarks.native_agents:OneCallNative"
WARM = 16


@contextmanager
def pool(gateway: GatewayApi, folder: Path, *, processes: int, concurrency: int) -> Iterator[None]:
    """Run our worker pool during the block."""
    command = [
        *(sys.executable, "-m", "s3_agent.cli", "workers", "--gateway", gateway.url, "--plain", "--drain-s", "0"),
        *("--processes", str(processes), "--concurrency", str(concurrency), "--native-agent", AGENT),
        f"gateway.policy_calls={processes * concurrency}",
    ]
    log = folder / "pool.log"
    with log.open("ab") as output:
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "AGL_KEY": KEY}, stdout=output, stderr=output)
    try:
        yield
        if process.poll() is not None:
            raise RuntimeError(f"the pool ended unexpectedly: {log.read_text()[-2000:]}")
    finally:
        process.terminate()
        process.wait()


def play(gateway: GatewayApi, count: int) -> float:
    """The seconds for `count` rollouts, all of which have to succeed."""
    before, started = gateway.ended(), time.monotonic()
    rollouts = gateway.enqueue(*({"number": number} for number in range(count)), timeout_s=600, agent_class=AGENT)
    while gateway.ended() < before + count:
        time.sleep(0.1)
    seconds = time.monotonic() - started
    if unfinished := gateway.states(rollouts) - {"succeeded"}:
        raise RuntimeError(f"not all succeeded: {unfinished}")
    gateway.delete(rollouts)
    return seconds


def measure(policy: FakeSlowPolicy, url: str, options: argparse.Namespace, *, stock: bool) -> list[dict[str, Any]]:
    """A row for each level."""
    rows = []
    with tempfile.TemporaryDirectory() as name, real_gateway(Path(name), policy_url=url, stock=stock) as gateway:
        concurrency = -(-max(options.rollouts) // options.processes)
        with pool(gateway, Path(name), processes=options.processes, concurrency=concurrency):
            policy.seconds = 0.0
            play(gateway, WARM)
            policy.seconds = options.call_s
            for count in options.rollouts:
                policy.most_calls = 0
                ours, everything, began = *busy(), time.monotonic()
                seconds = play(gateway, count)
                whole = (time.monotonic() - began) * (os.cpu_count() or 1)
                ours_after, everything_after = busy()
                others = max(0.0, everything_after - everything - (ours_after - ours))
                rows.append(
                    {
                        "rollouts": count,
                        "calls_in_flight": policy.most_calls,
                        "rollouts_per_s": round(count / seconds, 2),
                        "seconds": round(seconds, 1),
                        "others_share": round(others / whole, 3),
                    }
                )
    return rows


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, nargs="+", default=[100, 240, 480], help="levels, each once")
    parser.add_argument("--call-s", type=float, default=10.0)
    parser.add_argument("--processes", type=int, default=4, help="worker processes")
    options = parser.parse_args()
    policy = FakeSlowPolicy(lambda _: "x")
    with serve(policy_app(policy)) as url:
        stock, ours = (measure(policy, url, options, stock=stock) for stock in (True, False))
    highest = max(range(len(ours)), key=lambda level: ours[level]["rollouts"])
    result = {
        "calls_in_flight": ours[highest]["calls_in_flight"],
        "over_stock": round(ours[highest]["rollouts_per_s"] / stock[highest]["rollouts_per_s"], 2),
        "stock": stock,
        "ours": ours,
        "call_s": options.call_s,
        "policy_server": "FakeSlowPolicy, which sleeps",
        "processes": options.processes,
        "processor": processor_name(),
        "cores": os.cpu_count(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
