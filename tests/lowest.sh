#!/usr/bin/env bash
# The tests with the oldest releases that pyproject.toml admits, in .venv-lowest: `bash tests/lowest.sh [--all] [ARGUMENT…]`.
# Without --all: only the unit tests, without torch, which is most of the download. With --all: also integration tests.
# Tests that depend on the training stack are left out, because its releases are pinned. Other arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh --dev

pinned=(agents/test_swap_agent agl doctor processes/test_{other_environment,preloaded,setup_command}
    training/test_{compare_job,dry_run,stopped_job})
tests=(tests/unit)
for name in "${pinned[@]}"; do tests+=("--ignore=tests/unit/$name" "--ignore=tests/unit/$name.py"); done
left_out=("torch ; sys_platform == 'never'")
arguments=()
for argument in "$@"; do
    if [[ $argument == --all ]]; then
        left_out=()
        tests+=(tests/integration/test_{ask,data_pipeline,engines,evaluation,every_agent,report_page,retrieval_server_faults,retrieval_server_http}.py)
    else
        arguments+=("$argument")
    fi
done

uv=$(command -v uv || printf '%s\n' "$PWD/.uv/bin/uv") root=$PWD
"$uv" venv --quiet --clear --python .venv/bin/python .venv-lowest
# Run from another folder, because the overrides in pyproject.toml are for the pinned stack.
(cd / && "$uv" pip install --quiet --resolution lowest-direct --python "$root/.venv-lowest/bin/python" \
    --override <(printf '%s\n' ${left_out[@]+"${left_out[@]}"}) --group "$root/pyproject.toml:dev" \
    --editable "$root[retriever,dense,evaluation,data,metrics,claude,tokenizer,pgvector,lancedb]")
exec .venv-lowest/bin/python -m pytest -m "not slow" "${tests[@]}" ${arguments[@]+"${arguments[@]}"}
