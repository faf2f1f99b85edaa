#!/usr/bin/env bash
# Sets up .venv with the development tools, then checks everything: ruff, import-linter, pyright, pytest.
# `bash tests/run.sh [--all] [pytest arguments]`: --all adds the tests marked `slow`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh --dev

unset PYTHONDONTWRITEBYTECODE  # a run starts a dozen processes that import the same 7000 modules
marks="not slow"
arguments=()
for argument in "$@"; do
    if [[ $argument == --all ]]; then marks=""; else arguments+=("$argument"); fi
done

step() { printf '\n== %s\n' "$*"; ".venv/bin/$1" "${@:2}"; }
step ruff check .
step lint-imports
step pyright
printf '\n== pytest\n'
exec .venv/bin/python -m pytest -m "$marks" ${arguments[@]+"${arguments[@]}"}
