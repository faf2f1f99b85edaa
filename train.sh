#!/usr/bin/env bash
# Sets up .venv, then trains: `bash train.sh [--recipe NAME] [section.field=value …]`. Without a recipe: `cpu`,
# the embedded default. `--dry-run` prints what would start, `--twin` tries a recipe on the CPU, `--resume RUN` continues a
# run; `--help` lists the rest. The setup is skipped when it is already done.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
for argument in "$@"; do
    if [[ $argument == --dry-run ]]; then  # a plan needs neither GPUs nor the training stack
        bash "$root/scripts/setup.sh" --core
        exec "$root/.venv-core/bin/s3-agent" train "$@"
    fi
done
bash "$root/scripts/setup.sh"
unset PYTHONDONTWRITEBYTECODE  # a run starts a dozen processes that import the same 7000 modules
exec "$root/.venv/bin/s3-agent" train "$@"
