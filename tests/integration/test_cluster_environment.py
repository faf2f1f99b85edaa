"""What a scheduler, a container or a shell leaves in the environment does not reach the processes of a run."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import httpx
import pytest

from s3_agent.clients.connections import get
from s3_agent.processes import stack as stack_module
from s3_agent.processes.commands import gateway_command
from s3_agent.processes.parts import training_parts
from s3_agent.processes.ports import reserve_port
from s3_agent.processes.run_folder import Run
from s3_agent.processes.stack import Part, Stack, own_processes
from s3_agent.recipe import load_recipe
from tests.pool_harness import until
from tests.unit.clients.test_connections import FakeServer

ASKS = """
import asyncio, sys, urllib.request
import aiohttp, httpx, requests
async def by_aiohttp():
    async with aiohttp.ClientSession(trust_env=True) as session, session.get(sys.argv[1]) as reply:
        return await reply.text()
print(httpx.get(sys.argv[1]).text, requests.get(sys.argv[1]).text,
      urllib.request.urlopen(sys.argv[1]).read().decode(), asyncio.run(by_aiohttp()))
"""
SOCKET = """
import os, tempfile
from datetime import datetime
from ray._common.utils import get_default_ray_temp_dir
from ray._private.utils import validate_socket_filepath
session = f"session_{datetime.now().strftime('%Y-%m-%d_%H-%M-%S_%f')}_4194304"
validate_socket_filepath(os.path.join(get_default_ray_temp_dir(), session, "sockets", "plasma_store"))
print(get_default_ray_temp_dir())
"""
RENDEZVOUS = """
import os, socket
from datetime import timedelta
import torch.distributed as dist
found = sorted({"RANK", "LOCAL_RANK"} & os.environ.keys())
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))  # as verl does
dist.init_process_group("gloo", timeout=timedelta(seconds=3))
print(found, "together")
"""
SERVED = """
import vllm.envs as envs
print(envs.VLLM_PORT, envs.VLLM_API_KEY)
"""
VERL_WORKER = """
import os
os.environ["CUDA_VISIBLE_DEVICES"] = "0"
from verl.single_controller.base.worker import Worker
Worker._setup_env_cuda_visible_devices(Worker.__new__(Worker))
print("placed")
"""


@pytest.fixture
def run_id(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A marker of this test's own."""
    monkeypatch.setattr(stack_module, "STOP_S", 3.0)
    marker = f"test-{os.getpid()}-{time.monotonic_ns()}"
    yield marker
    left = own_processes(marker)
    for process in left:
        process.kill()
    assert left == []


def said(folder: Path, run_id: str, source: str, *arguments: str) -> str:
    """What a part says that runs `source`."""
    command = [sys.executable, "-c", source, *arguments]
    part = Part(name="job", command=command, log=folder / "job.log")
    with Stack([part], run_id=run_id) as stack:
        stack.run("job")
    return (folder / "job.log").read_text().strip()


@pytest.mark.parametrize(
    "environment",
    [
        {"all_proxy": "socks5://127.0.0.1:9"},
        {"ALL_PROXY": "socks://127.0.0.1:9/", "http_proxy": "http://127.0.0.1:9"},
        {"http_proxy": "http://127.0.0.1:9", "no_proxy": "10.0.0.0/8,[::1]"},
        {"http_proxy": "http://127.0.0.1:9", "NO_PROXY": "fd00::/8"},
    ],
    ids=str,
)
def test_the_gateway_starts_in_a_clusters_environment(
    environment: dict[str, str], tmp_path: Path, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("agentlightning")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run = Run(tmp_path / "run")
    run.create()
    parts = training_parts(load_recipe("cpu", [f"gateway.port={port}"]), run, key="key")
    with Stack([part for part in parts if part.name == "gateway"], run_id=run_id) as stack:
        stack.run()
        assert stack.starting == []


def is_up(url: str) -> bool:
    try:
        return get(url, timeout=10.0).is_success
    except httpx.TransportError:
        return False


def test_a_gateway_that_is_started_by_hand_starts_in_it_too(tmp_path: Path) -> None:
    pytest.importorskip("agentlightning")
    port = reserve_port("gateway", 0)
    environment = {**os.environ, "AGL_KEY": "key", "all_proxy": "socks5://127.0.0.1:9", "no_proxy": "[::1],fd00::/8"}
    command = gateway_command(load_recipe("cpu"), port=port, folder=tmp_path)
    log = tmp_path / "log"
    with log.open("wb") as output, subprocess.Popen(command, env=environment, stdout=output, stderr=output) as process:
        try:
            until(lambda: process.poll() is not None or is_up(f"http://127.0.0.1:{port}/healthz"), within_s=120.0)
            assert process.poll() is None, log.read_text()
        finally:
            process.kill()


@pytest.mark.parametrize(
    "environment",
    [
        {"http_proxy": "{proxy}", "no_proxy": "10.0.0.0/8"},
        {"HTTP_PROXY": "{proxy}", "no_proxy": "fd00::/8", "NO_PROXY": "127.0.0.1"},
        {"http_proxy": "{proxy}", "all_proxy": "socks5h://127.0.0.1:9", "no_proxy": "[::1]"},
    ],
    ids=str,
)
def test_no_library_in_a_part_asks_a_proxy_for_this_machine(
    environment: dict[str, str], tmp_path: Path, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, proxy = FakeServer("own"), FakeServer("proxy")
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(proxy=f"http://127.0.0.1:{proxy.port}"))
    try:
        assert said(tmp_path, run_id, ASKS, f"http://127.0.0.1:{own.port}/") == "own own own own"
        assert proxy.asked == []
    finally:
        own.close()
        proxy.close()


def test_rays_sockets_fit_where_the_temporary_folder_has_a_long_path(
    tmp_path: Path, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    long = tmp_path / ("job" * 20)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    with mock.patch("tempfile.tempdir", None):
        assert said(tmp_path, run_id, SOCKET).startswith("/tmp/s3-")


def test_a_part_is_no_rank_of_the_job_around_it(tmp_path: Path, run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    of_torchrun = {
        "RANK": "3",
        "LOCAL_RANK": "3",
        "WORLD_SIZE": "8",
        "MASTER_ADDR": "192.0.2.1",
        "MASTER_PORT": "29500",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": "none",
    }
    for name, value in of_torchrun.items():
        monkeypatch.setenv(name, value)
    assert said(tmp_path, run_id, RENDEZVOUS).endswith("[] together")


def test_vllm_reads_no_service_of_kubernetes_and_asks_for_no_key_of_another_server(
    tmp_path: Path, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vllm")
    monkeypatch.setenv("VLLM_PORT", "tcp://10.0.0.1:8000")
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    assert said(tmp_path, run_id, SERVED).endswith("None None")


def test_verls_workers_find_one_list_of_gpus(tmp_path: Path, run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("verl")
    for name, value in {"ROCR_VISIBLE_DEVICES": "0,1", "HIP_VISIBLE_DEVICES": "1"}.items():
        monkeypatch.setenv(name, value)
    assert said(tmp_path, run_id, VERL_WORKER).endswith("placed")


def test_a_run_of_ours_joins_no_ray_that_the_environment_names(
    tmp_path: Path, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    source = "from ray._private.services import canonicalize_bootstrap_address as a; print(a(None))"
    assert said(tmp_path, run_id, source).endswith("None")


def test_what_is_asked_for_over_http_is_httpx() -> None:
    """The gateway's client is httpx's: what it can not be made with is what must not reach it."""
    with mock.patch.dict(os.environ, {"all_proxy": "socks5://127.0.0.1:9"}), pytest.raises(ImportError, match="socks"):
        httpx.Client()
    with mock.patch.dict(os.environ, {"no_proxy": "[::1]"}), pytest.raises(httpx.InvalidURL):
        httpx.Client()


def test_the_doctor_of_a_command_sees_the_environment_of_its_shell() -> None:
    """The command line has left out the proxy by then."""
    source = (
        "import os; del os.environ['all_proxy']\n"
        "from s3_agent.machine.host import this_machine\n"
        "print(this_machine(paths=[], inputs=[], packages={}).host.environment['all_proxy'])"
    )
    environment = {**os.environ, "all_proxy": "socks5://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", source], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "socks5://127.0.0.1:9"
