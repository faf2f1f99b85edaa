#!/usr/bin/env bash
# Collects what `tests/gpu/run.sh` needs and a machine with torch and transformers alone lacks, into tests/gpu/carried
# (ignored by git): `bash tests/gpu/carry.sh`, once, where PyPI can be reached. Versions are those of uv.lock, for CPython 3.12
# on x86-64 Linux. All are pure Python but pydantic-core. verl is there for one file of it: its fused log-probs.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
names=(annotated-types antlr4-python3-runtime cachetools fastapi omegaconf opentelemetry-api pydantic pydantic-core
    starlette structlog tenacity typing-extensions typing-inspection uvicorn verl)
uv=$(command -v uv || printf '%s' "$root/.uv/bin/uv")
[[ -x $uv ]] || { echo "carry: no uv; scripts/setup.sh installs one into .uv" >&2; exit 2; }

wanted=() name=
while read -r key _ value; do  # uv.lock lists a package's name and, on the next line, its version
    case $key in
        name) name=${value//\"/} ;;
        version) for one in "${names[@]}"; do [[ $one != "$name" ]] || wanted+=("$one==${value//\"/}"); done ;;
    esac
done <"$root/uv.lock"
((${#wanted[@]} == ${#names[@]})) || { echo "carry: uv.lock has ${wanted[*]}, not all of ${names[*]}" >&2; exit 2; }

rm -rf "$root/tests/gpu/carried"
"$uv" pip install --no-deps --target "$root/tests/gpu/carried" --python-version 3.12 \
    --python-platform x86_64-manylinux_2_28 --only-binary=:all: --no-binary=antlr4-python3-runtime "${wanted[@]}"
du -sh "$root/tests/gpu/carried"
