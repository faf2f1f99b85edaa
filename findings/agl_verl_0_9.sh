#!/usr/bin/env bash
# Agent Lightning 1.0.2 has no bound on verl, so `pip install agentlightning verl` takes verl 0.9.1, with which no training
# starts: agentlightning.verl.entrypoint imports TaskRunner and create_rl_sampler from verl.trainer.main_ppo, where verl 0.9
# no longer has them (main_ppo_v0 and ppo.utils do). The imports are inside functions of a Ray actor, so that
# `import agentlightning.verl.entrypoint` succeeds, and the failure comes when Ray has started. verl 0.9 also deprecates
# the class that Agent Lightning's trainer extends (trainer.use_v1 is true by default) and refuses transformers from 5.11
# on, while 0.8.0 takes any. Its bound on numpy became the opposite: <2.0.0 in 0.8.0, >=2.0.0 in 0.9.1.
#
# Seen with agentlightning 1.0.2, verl 0.8.0 and 0.9.1, Python 3.12, Linux x86-64. Fails when that changes. Needs Python
# 3.12 and PyPI; installs three packages without their dependencies into a temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python="${PYTHON:-python3.12}"
for package in agentlightning==1.0.2 verl==0.8.0 verl==0.9.1; do
    "$python" -m pip install --quiet --no-deps --disable-pip-version-check --target "$folder/$package" "$package"
done
"$python" - "$folder" <<'PYTHON'
import ast
import re
import sys
from pathlib import Path

folder = Path(sys.argv[1])


def names_of(path):
    """The names that a module has once it is imported."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {alias.asname or alias.name for alias in node.names}
    return found


def wanted_at(path, module):
    """`(names imported at the top, names imported in functions)` from a module."""
    tree = ast.parse(path.read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == module]
    top = {alias.name for node in imports if node in tree.body for alias in node.names}
    return top, {alias.name for node in imports for alias in node.names} - top


entry = folder / "agentlightning==1.0.2/agentlightning/verl/entrypoint.py"
top, late = wanted_at(entry, "verl.trainer.main_ppo")
print("imported when Agent Lightning's entry point is imported:", sorted(top), "- when it runs:", sorted(late))
assert not top
bounds = {}
for version in ("0.8.0", "0.9.1"):
    place = folder / f"verl=={version}"
    missing = sorted(late - names_of(place / "verl/trainer/main_ppo.py"))
    metadata = (place / f"verl-{version}.dist-info/METADATA").read_text()
    bounds[version] = {
        name: re.search(rf"^Requires-Dist: {name}([^;\n]*)$", metadata, re.MULTILINE)[1] for name in ("numpy", "transformers")
    }
    use_v1 = "use_v1: true" in (place / "verl/trainer/config/ppo_trainer.yaml").read_text()
    print("verl", version, "- missing:", missing, "- use_v1:", use_v1, "-", bounds[version])
    assert (missing, use_v1) == {
        "0.8.0": ([], False),
        "0.9.1": (["TaskRunner", "create_rl_sampler"], True),
    }[version]
assert bounds["0.8.0"] == {"numpy": "<2.0.0", "transformers": ""}
assert bounds["0.9.1"] == {"numpy": ">=2.0.0", "transformers": "!=5.6.0,<5.11,>=5.5.3"}
asked = (folder / "agentlightning==1.0.2/agentlightning-1.0.2.dist-info/METADATA").read_text()
assert not re.search(r"^Requires-Dist: (verl|torch|transformers)\b", asked, re.MULTILINE)
PYTHON
