"""Reads the visible GPUs from nvidia-smi, which comes with the driver and works before any package is installed."""

import os
import subprocess

from s3_agent.machine.description import MIB, Gpu

QUERY = "index,name,memory.total,memory.used,driver_version,compute_cap,uuid"


def read_gpus(listing: str, *, visible: str | None) -> tuple[Gpu, ...]:
    """The visible GPUs of `nvidia-smi --query-gpu=… --format=csv,noheader,nounits`, numbered as CUDA numbers them."""
    cards: dict[str, Gpu] = {}
    for line in filter(str.strip, listing.splitlines()):
        index, name, total, used, driver, capability, uuid = (part.strip() for part in line.split(","))
        major, _, minor = capability.partition(".")
        memory = int(total) * MIB
        cards[index] = cards[uuid] = Gpu(
            index=int(index),
            name=name,
            total=memory,
            free=memory - int(used) * MIB,
            driver=driver,
            capability=(int(major), int(minor)) if minor.isdigit() else None,
        )
    if visible is None:
        chosen = [card for key, card in cards.items() if key.isdigit()]
    else:
        chosen = []
        for key in filter(None, (part.strip() for part in visible.split(","))):
            matches = {card.index: card for name, card in cards.items() if name == key or name.startswith(f"{key}-")}
            if not matches:  # CUDA also ignores the first unknown GPU and all after it
                break
            chosen.append(next(iter(matches.values())))
    return tuple(
        Gpu(number, card.name, card.total, card.free, card.driver, card.capability)
        for number, card in enumerate(chosen)
    )


def visible_gpus() -> tuple[Gpu, ...]:
    """The GPUs that this process can use; none without a driver."""
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return read_gpus(asked.stdout, visible=os.environ.get("CUDA_VISIBLE_DEVICES"))
    except (OSError, subprocess.SubprocessError, ValueError):  # no driver, or a listing in another form
        return ()
