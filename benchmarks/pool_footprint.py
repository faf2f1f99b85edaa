"""Measures how soon 128 worker processes are ready, and the memory of each after ten rollouts.

    python benchmarks/pool_footprint.py [--processes 128] [--rollouts-each 10]

The recipe's agent plays the rollouts through the real `agl-server`, with the shipped fakes of policy, retriever and
generator over real HTTP. The proportional set size of a process is its private pages plus its share of the shared ones
(`/proc/*/smaps_rollup`).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.real_gateway import KEY, real_gateway  # noqa: E402
from s3_agent.clients.tokenizer import load_tokenizer  # noqa: E402
from s3_agent.embedded import NANO_POLICY  # noqa: E402
from s3_agent.processes.ports import reserve_port  # noqa: E402
from s3_agent.testing.fakes import FakeGenerator, FakePolicy, FakeRetriever  # noqa: E402
from s3_agent.testing.servers import generator_app, policy_app, retriever_app, serve  # noqa: E402
from s3_agent.types import Passage  # noqa: E402

READY_WITHIN_S = 120.0


def _searcher(prompt: str) -> str:
    if prompt.count("</information>") == 1:
        return '<search_complete>False</search_complete>\n<query>{"query": "currency of Norway"}</query>'
    return "<important_info>[1]</important_info>\n<search_complete>True</search_complete><|im_end|>"


def _pss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def _ready_workers(metrics: int) -> int:
    try:
        text = httpx.get(f"http://127.0.0.1:{metrics}/metrics", trust_env=False).text
    except httpx.TransportError:
        return 0
    values = [line.split()[1] for line in text.splitlines() if line.startswith("s3_agent_workers ")]
    return int(float(values[0])) if values else 0


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=128)
    parser.add_argument("--rollouts-each", type=int, default=10)
    options = parser.parse_args()
    policy = FakePolicy(_searcher, load_tokenizer(str(NANO_POLICY)))
    passage = Passage(id="1", title="Norway", text="The currency of Norway is Krone. " * 20)
    with (
        tempfile.TemporaryDirectory() as name,
        serve(policy_app(policy)) as policy_url,
        serve(retriever_app(FakeRetriever(default=[passage]))) as retriever_url,
        serve(generator_app(FakeGenerator("It is the Krone."))) as generator_url,
        real_gateway(Path(name), model=str(NANO_POLICY), policy_url=policy_url) as gateway,
    ):
        metrics, episodes = reserve_port("metrics", 0), Path(name) / "episodes.jsonl"
        command = [
            *(sys.executable, "-m", "s3_agent.cli", "workers", "--gateway", gateway.url, "--plain"),
            *("--processes", str(options.processes), "--concurrency", "1", "--metrics-port", str(metrics)),
            *("--episodes", str(episodes), f"retriever.url={retriever_url}", f"generator.url={generator_url}/v1"),
        ]
        started = time.monotonic()
        pool = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "AGL_KEY": KEY}, stdout=subprocess.DEVNULL)
        try:
            while _ready_workers(metrics) < options.processes:
                if pool.poll() is not None or time.monotonic() - started > READY_WITHIN_S:
                    raise TimeoutError("the workers did not get ready")
                time.sleep(0.05)
            ready_s = time.monotonic() - started
            count = 0
            task = {"id": "t", "question": "What is the currency of Norway?", "golden_answers": ["Krone"]}
            played: Counter[str] = Counter()
            while len(played) < options.processes or min(played.values()) < options.rollouts_each:
                count += options.processes * 2
                gateway.enqueue(*[task] * options.processes * 2, timeout_s=600)
                while gateway.ended() < count:
                    time.sleep(0.1)
                lines = [json.loads(line) for line in episodes.read_text().splitlines()]
                if failed := [line["error"] for line in lines if line["state"] != "succeeded"]:
                    raise RuntimeError(f"not all went well: {failed[0]}")
                played = Counter(line["worker"] for line in lines)
            [zygote] = psutil.Process(pool.pid).children()
            sizes = [_pss_mb(worker.pid) for worker in zygote.children()]
            result = {
                "ready_s": round(ready_s, 2),
                "pss_mb_per_process": round(statistics.mean(sizes), 1),
                "pss_mb_largest": round(max(sizes), 1),
                "pss_mb_zygote": round(_pss_mb(zygote.pid), 1),
                "pss_mb_supervisor": round(_pss_mb(pool.pid), 1),
                "processes": len(sizes),
                "fewest_rollouts_played": min(played.values()),
                "cores": os.cpu_count(),
            }
        finally:
            pool.terminate()
            pool.wait()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
