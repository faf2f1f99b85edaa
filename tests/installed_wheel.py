"""The wheel as a stranger has it: built here, installed into an environment of its own, run in an empty folder."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def find_uv() -> str:
    """uv from PATH or of this clone; without one the test is skipped."""
    uv = next((found for place in ("uv", ROOT / ".uv/bin/uv") if (found := shutil.which(place))), None)
    if uv is None or subprocess.run([uv, "--version"], capture_output=True).returncode:
        pytest.skip("no uv here")
    return uv


def build_wheel(folder: Path, *, root: Path = ROOT) -> Path:
    """The wheel of the sources in `root`, made in `folder`."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    [wheel] = folder.glob("s3_agent-*-py3-none-any.whl")
    return wheel


def install_beside(source: Path, folder: Path) -> Path:
    """The package in `source`, built and installed alone into a new folder, which can be put into PYTHONPATH."""
    copy, site = folder / "source", folder / "site"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=copy, check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    alone = ["--no-deps", "--offline", "--python", sys.executable, "--target", str(site)]
    subprocess.run([find_uv(), "pip", "install", *alone, str(wheel)], check=True, capture_output=True)
    return site


@dataclass(frozen=True)
class Installation:
    """A virtual environment with the wheel, and the empty folder in which its commands are run."""

    environment: Path
    folder: Path

    @property
    def variables(self) -> dict[str, str]:
        """As after `activate`; uv can be found, and nothing of the clone can be imported."""
        path = os.pathsep.join([str(self.environment / "bin"), str(Path(find_uv()).parent), os.environ["PATH"]])
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        return kept | {"PATH": path, "COLUMNS": "80"}

    def run(
        self, *command: str, folder: Path | None = None, timeout_s: float = 120, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """One command in the folder, or in another."""
        return subprocess.run(
            [str(self.environment / "bin" / command[0]), *command[1:]],
            cwd=folder or self.folder,
            env=self.variables | variables,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )


def install(wheel: Path, folder: Path, *, extras: str = "") -> Installation:
    """A new environment in `folder` with the wheel and the named extras, e.g. `[retriever]`."""
    uv, environment, work = find_uv(), folder / "environment", folder / "work"
    work.mkdir(parents=True)
    for command in (
        [uv, "venv", "--quiet", "--python", sys.executable, str(environment)],
        [uv, "pip", "install", "--quiet", "--python", str(environment / "bin" / "python"), f"{wheel}{extras}"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    return Installation(environment, work)


def commands_of(document: Path) -> list[list[str]]:
    """The `s3-agent` commands of a document's bash blocks, in order, as arguments."""
    blocks = re.findall(r"^```(?:bash|sh)\n(.*?)^```", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return [shlex.split(part, comments=True) for part in parts if part.startswith("s3-agent ")]
