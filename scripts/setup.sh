#!/usr/bin/env bash
# Prepares .venv in this clone: `scripts/setup.sh [--dev]`. train.sh, data_process.sh and tests/run.sh call it.
# Does nothing when .venv already holds what uv.lock asks for. Everything it makes stays in the clone (.venv, .uv).
#   S3_AGENT_PYTHON=/path/to/python   the interpreter to use, instead of the first fitting one found
#   S3_AGENT_DEVICE=cpu|cuda          the set of dependencies, instead of what nvidia-smi says
set -euo pipefail

here=${BASH_SOURCE[0]%/*}
[[ $here == "${BASH_SOURCE[0]}" ]] && here=.
root=$(cd "$here/.." && pwd)
uv_pin=0.13.8     # installed into .uv when there is no uv, or one older than pyproject.toml's required-version
uv_oldest=0.9

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$@"; exit 2; }

fits() { "$1" -c 'import sys; sys.exit(not (3, 12) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1; }

find_python() {
    local candidate
    local candidates=(python3.12 python3.13 python3 python
        "${HOME:-}"/.pyenv/versions/3.1[23].*/bin/python
        "${XDG_DATA_HOME:-${HOME:-}/.local/share}"/uv/python/cpython-3.1[23]*/bin/python3)
    [[ -z ${S3_AGENT_PYTHON:-} ]] || candidates=("$S3_AGENT_PYTHON")
    for candidate in "${candidates[@]}"; do
        fits "$candidate" || continue
        "$candidate" -c 'import sys; print(sys.executable)'
        return
    done
    return 1
}

find_uv() {
    local candidate found
    for candidate in uv "$root/.uv/bin/uv"; do
        found=$("$candidate" --version 2>/dev/null) || continue
        found=${found#uv }
        [[ $(printf '%s\n' "$uv_oldest" "${found%% *}" | sort -V | head -n 1) == "$uv_oldest" ]] || continue
        printf '%s\n' "$candidate"
        return
    done
    say "no uv >= $uv_oldest on PATH: installing uv $uv_pin into .uv"
    if ! { "$python" -m venv --clear "$root/.uv" && "$root/.uv/bin/python" -m pip install --quiet "uv==$uv_pin"; } >&2; then
        fail "could not install uv. Install it yourself (https://docs.astral.sh/uv), or give $python its venv module" \
            "(Debian: apt install python3-venv), then run this again."
    fi
    printf '%s\n' "$root/.uv/bin/uv"
}

python=$(find_python) || fail "no Python >= 3.12, < 3.14 was found${S3_AGENT_PYTHON:+ at S3_AGENT_PYTHON=$S3_AGENT_PYTHON}. Get one, then run this again:
  uv python install 3.12               (https://docs.astral.sh/uv)
  pyenv install 3.12                   (https://github.com/pyenv/pyenv)
  apt install python3.12 python3.12-venv    or    brew install python@3.12
or name one: S3_AGENT_PYTHON=/path/to/python3.12"

if [[ -n ${S3_AGENT_DEVICE:-} ]]; then
    device=$S3_AGENT_DEVICE why="S3_AGENT_DEVICE says so"
elif nvidia-smi -L >/dev/null 2>&1; then
    device=cuda why="nvidia-smi lists a GPU"
else
    device=cpu why="nvidia-smi lists no GPU"
fi
[[ $device == cpu || $device == cuda ]] || fail "S3_AGENT_DEVICE must be cpu or cuda, not '$device'."

wanted=("--extra=train" "--extra=retriever" "--extra=dense" "--extra=data" "--extra=$device")
stamp="$root/.venv/.s3-agent-setup"
state=$(
    cat "$root/uv.lock" "$root/pyproject.toml" "$root/scripts/setup.sh" | cksum
    "$python" -VV
    printf '%s\n' "$device" "$root"
)
[[ ${1:-} == --dev ]] && dev=yes || dev=no
if [[ -x "$root/.venv/bin/python" && -f $stamp ]]; then
    read -r had_dev <"$stamp"
    [[ $(tail -n +2 "$stamp") == "$state" && ($dev == no || $had_dev == yes) ]] && exit 0
    [[ $had_dev == no ]] || dev=yes  # the development tools, once there, stay
fi

uv=$(find_uv)
say "$device dependencies ($why), $("$python" -V), into $root/.venv (about 7 GB; minutes the first time)"
rm -f "$stamp"
cd "$root"
UV_PROJECT_ENVIRONMENT="$root/.venv" "$uv" sync --frozen --no-default-groups --python "$python" "${wanted[@]}" \
    $([[ $dev == yes ]] && echo --group=dev) >&2 || fail "uv could not install the dependencies; its message is above."

say "compiling what every process of a run imports (once)"
log=$(env -u PYTHONDONTWRITEBYTECODE .venv/bin/python -c "
import agentlightning.server, agentlightning.verl.entrypoint, ray.dashboard.dashboard, verl.trainer.main_ppo
import vllm.entrypoints.openai.api_server, vllm.v1.engine.core, vllm.v1.worker.${device/cuda/gpu}_worker" 2>&1) ||
    fail "the installed packages do not import:"$'\n'"$log"
printf '%s\n%s\n' "$dev" "$state" >"$stamp"
