"""The card: the rates that every share of a floor is taken of, and what the driver and a process keep of its memory.

python -m tests.gpu.card [--small]
"""

import platform
import subprocess

import torch

from s3_agent.doctor.memory import CONTEXT, DRIVER
from tests.gpu.measuring import Measuring, begin

MIB = 1 << 20


def copy_rate(measuring: Measuring) -> float:
    """Bytes a second of a large copy on the device, read and written ones counted."""
    count = 1 << (20 if measuring.small else 31)
    source = torch.randint(0, 127, (count,), dtype=torch.int8, device=measuring.device)
    target = torch.empty_like(source)
    return 2 * count / measuring.seconds(lambda: target.copy_(source))


def product_rate(measuring: Measuring, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product on random numbers."""
    size = 128 if measuring.small else 8192
    one, other = (torch.randn(size, size, device=measuring.device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / measuring.seconds(lambda: one @ other)


def smi(field: str) -> list[str]:
    """A field of nvidia-smi, a line for each card."""
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[:-1]


def main() -> None:
    """Measure and print."""
    measuring, _ = begin("card")
    if measuring.small:
        measuring.say("card", card=platform.processor() or platform.machine(), torch=torch.__version__, devices=1)
    else:
        torch.zeros(1, device="cuda")
        free, total = torch.cuda.mem_get_info()
        shown = int(float(smi("memory.total")[0]) * MIB)
        measuring.say(
            "card",
            card=torch.cuda.get_device_name(),
            driver=smi("driver_version")[0],
            torch=torch.__version__,
            cuda=torch.version.cuda,
            devices=torch.cuda.device_count(),
            processors=torch.cuda.get_device_properties(0).multi_processor_count,
        )
        measuring.say(
            "kept", driver=shown - total, driver_planned=DRIVER, context=total - free, context_planned=CONTEXT
        )
    measuring.say(
        "rates",
        copy_bytes_per_s=copy_rate(measuring),
        fp16_operations_per_s=product_rate(measuring, torch.float32 if measuring.small else torch.float16),
        bf16_operations_per_s=product_rate(measuring, torch.bfloat16),
    )


if __name__ == "__main__":
    main()
