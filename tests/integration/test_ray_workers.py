"""`s3-agent workers --launcher ray` on a real local Ray: its own, and one that somebody else has started."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from benchmarks.real_gateway import KEY, GatewayApi
from s3_agent.processes.ports import _is_loopback
from s3_agent.rollout.worker.native import WorkerSettings
from tests.pool_harness import ROOT, gone, task, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(240)]

_CLUSTER = """
import os
os.environ.update(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0")
import ray, sys
ray.init(address="local", _node_ip_address="127.0.0.1", include_dashboard=False, num_cpus=2, log_to_driver=False)
print(ray.get_runtime_context().gcs_address, flush=True)
for _ in sys.stdin:
    print(ray.get(ray.remote(lambda: "alive").remote()), flush=True)
"""


@contextmanager
def pool(gateway: GatewayApi, worker: WorkerSettings, log: Path, *more: str) -> Iterator[psutil.Popen]:
    command = [
        *(sys.executable, "-m", "s3_agent.cli", "workers", f"retriever.url={worker.retriever_url}"),
        *(f"generator.url={worker.generator_url}", f"policy.model={worker.policy_tokenizer}"),
        *("generator.patience_s=0.2", "--gateway", gateway.url, "--pool-id", "ray", "--processes", "2"),
        *("--launcher", "ray", "--plain", *more),
    ]
    with log.open("wb") as output:
        process = psutil.Popen(
            command, cwd=ROOT, env={**os.environ, "AGL_KEY": KEY}, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        family = process.children(recursive=True) if process.is_running() else []
        for each in [process, *family]:
            if not gone(each):
                each.kill()
        process.wait()


def ended(gateway: GatewayApi, rollout_ids: list[str]) -> bool:
    return gateway.states(rollout_ids) <= {"succeeded", "failed"}


def open_to_others(processes: list[psutil.Process]) -> set[tuple[str, str]]:
    """Process and address of each socket that listens beyond this machine."""
    found = set()
    for process in processes:
        try:
            name = process.name()
            sockets = [each for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN]
        except psutil.NoSuchProcess:
            continue
        found |= {(name, each.laddr.ip) for each in sockets if not _is_loopback(each.laddr.ip)}
    return found


def actors_of(process: psutil.Process) -> list[psutil.Process]:
    found = []
    for each in process.children(recursive=True):
        try:
            if not gone(each) and "NativeActor" in " ".join(each.cmdline()):
                found.append(each)
        except psutil.NoSuchProcess:
            continue
    return found


def test_a_ray_of_its_own(gateway: GatewayApi, worker: WorkerSettings, tmp_path: Path) -> None:
    log = tmp_path / "log"
    env_map = {"QUESTION": "input.question", "GOLD": "input.golden_answers"}
    native = gateway.enqueue(*map(task, range(6)))
    forked = gateway.enqueue(task(7), agent_class="tests.agents.plain:AsksThePolicy", env_map=env_map)
    rollouts = [*native, *forked]
    with pool(gateway, worker, log) as process:
        until(lambda: ended(gateway, rollouts) or process.poll() is not None, within_s=120)
        assert process.poll() is None, log.read_text()[-3000:]
        assert [gateway.rewards(each) for each in rollouts] == [[1.0]] * 7, log.read_text()[-3000:]
        assert open_to_others([process, *process.children(recursive=True)]) == set()
        actors = actors_of(process)
        assert len(actors) == 2
        actors[0].kill()
        more = gateway.enqueue(*map(task, range(10, 14)))
        until(lambda: ended(gateway, more), within_s=60)
        assert [gateway.rewards(each) for each in more] == [[1.0]] * 4
        until(lambda: len(actors_of(process)) == 2)
        family = process.children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()[-3000:]
        until(lambda: all(map(gone, family)), within_s=20)


def test_somebody_elses_ray_is_joined_and_left_running(
    gateway: GatewayApi, worker: WorkerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # a pool has the authentication that its shell has
    cluster = psutil.Popen(
        [sys.executable, "-c", _CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        stderr=subprocess.DEVNULL,
    )
    try:
        address = cluster.stdout.readline().strip()
        rollouts = gateway.enqueue(*map(task, range(20, 24)))
        with pool(gateway, worker, log, "--ray-address", address) as process:
            until(lambda: ended(gateway, rollouts) or process.poll() is not None, within_s=90)
            assert [gateway.rewards(each) for each in rollouts] == [[1.0]] * 4, log.read_text()[-3000:]
            actors = actors_of(cluster)
            assert len(actors) == 2
            process.kill()  # not even asked to end: the actors still go with it
            until(lambda: all(map(gone, actors)), within_s=30)
        cluster.stdin.write("?\n")
        cluster.stdin.flush()
        assert cluster.stdout.readline() == "alive\n"
    finally:
        cluster.stdin.close()
        cluster.wait(30)
