#!/usr/bin/env bash
# Sets up .venv, then trains: `bash train.sh [--recipe NAME] [section.field=value …]`. Without a recipe: `cpu`,
# the embedded default. `bash train.sh --help` lists the rest. Runs again skip what is done.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bash "$root/scripts/setup.sh"
unset PYTHONDONTWRITEBYTECODE  # a run starts a dozen processes that import the same 7000 modules
exec "$root/.venv/bin/s3-agent" train "$@"
