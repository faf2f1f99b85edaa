#!/usr/bin/env bash
# Measures on a GPU what docs/gpu.md lists, in at most nine minutes: `bash tests/gpu/run.sh [--small] [FOLDER]`.
# Needs Python 3.12 with torch, transformers and what `tests/gpu/carry.sh` collected; nothing is fetched. Findings are JSON
# lines on stdout, each as soon as it is known, and in FOLDER/gpu.jsonl; a part that fails or runs over its time ends alone.
# --small rehearses everything on a CPU with tiny sizes.   PYTHON=/path/to/python names another interpreter.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root" || exit 2
small=() folder=
for argument in "$@"; do
    if [[ $argument == --small ]]; then small=(--small); else folder=$argument; fi
done
python=${PYTHON:-python3}
export PYTHONPATH="$root/tests/gpu/carried:$root" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=true
findings=/dev/null
if [[ -n $folder ]]; then mkdir -p "$folder" && findings="$folder/gpu.jsonl" && : >"$findings"; fi

whole=${GPU_SECONDS:-535} failed=0  # seconds of all parts together
cases=(activations_3b activations_7b s3_1x80gb s3_8x40gb s3_3b_8x40gb)
if [[ -n ${small[0]:-} ]]; then whole=5350 cases=(activations_3b s3_1x80gb s3_8x40gb); fi  # a busy CPU decides nothing
part() {  # NAME SECONDS [OPTIONS]
    local name=$1 seconds=$2 began=$SECONDS left=$((whole - SECONDS)) code
    shift 2
    [[ -z ${small[0]:-} ]] || seconds=$((seconds * 10))
    ((left >= 15)) || { code=skipped; seconds=0; }
    ((seconds <= left)) || seconds=$left
    if [[ -z ${code:-} ]]; then
        timeout --kill-after=5 "$seconds" "$python" -m "tests.gpu.$name" --seconds "$seconds" "$@" \
            ${small[@]+"${small[@]}"} | tee -a "$findings"
        code=${PIPESTATUS[0]}
    fi
    [[ $code == 0 ]] || failed=1
    printf '{"part": "%s", "name": "ended", "options": "%s", "code": "%s", "seconds": %d}\n' \
        "$name" "$*" "$code" $((SECONDS - began)) | tee -a "$findings"
}

# At their limits, all but the last two cases take 490 s together; those get what is left.
part card 40
part search 150
for case in "${cases[@]:0:3}"; do part memory 40 --case "$case"; done
part encoder 100
part learning 80
for case in "${cases[@]:3}"; do part memory 60 --case "$case"; done
exit "$failed"
