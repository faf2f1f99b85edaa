"""Checks whether the GPUs that the recipe uses exist and are free, and whether their driver supports our CUDA."""

import re
from collections.abc import Iterator

from s3_agent.doctor.case import Case
from s3_agent.doctor.findings import Finding, error, warning
from s3_agent.doctor.memory import DRIVER, gib

OLDEST = (8, 0)  # Ampere: bfloat16 and flash-attention 2
# The oldest Linux driver of each CUDA major release, minor version compatibility included (CUDA's release notes).
DRIVERS = {12: (525, 60, 13), 13: (580, 65, 6)}


def check_gpus(case: Case) -> Iterator[Finding]:
    """GPUs by number, memory, age and driver."""
    cards = case.machine.gpus
    gpus = case.training.gpus if case.training else case.recipe.trainer.gpus
    yield from _nodes(case)
    if not case.cuda:
        if cards:
            yield warning(
                "gpus.unused",
                what=f"the recipe trains on the CPU, but {case.machine.name} has {len(cards)} GPUs",
                why="the CPU backend does nothing if there is CUDA: verl would train on a GPU with settings for a CPU",
                fix="set CUDA_VISIBLE_DEVICES= (nothing), or use a recipe with trainer.device=cuda",
            )
        return
    if not cards:
        yield error(
            "gpus.none",
            what=f"the recipe needs GPUs, but none is visible on {case.machine.name}",
            why="verl and vLLM would fail when they search for CUDA",
            fix="check `nvidia-smi` and CUDA_VISIBLE_DEVICES; without a GPU: s3-agent train --recipe cpu",
        )
        return
    known = {gpu.index for gpu in cards}
    wanted = {number for part in ("trainer", "retriever", "generator") for number in case.recipe.gpus.of(part) or []}
    missing = sorted(wanted - known)
    if missing or gpus > len(cards):
        named = (
            f"the recipe uses GPUs {missing}, which are not among the {len(cards)} visible ones"
            if missing
            else f"trainer.gpus={gpus} is more than the {len(cards)} visible ones"
        )
        yield error(
            "gpus.too-few",
            what=named,
            why="Ray waits forever for a missing GPU, and a service that should use it finds no CUDA device",
            fix="change trainer.gpus and gpus.trainer/retriever/generator, or CUDA_VISIBLE_DEVICES",
        )
    yield from _each(case)


def _nodes(case: Case) -> Iterator[Finding]:
    """Whether the run's Ray has a GPU, or the one logical GPU of the CPU backend, for each rank."""
    if (training := case.training) is None:
        return
    if not case.cuda and training.gpus != 1:
        yield error(
            "gpus.cpu-ranks",
            what=f"the recipe trains on the CPU with {training.gpus} ranks",
            why="the CPU backend has one rank, on one logical GPU, on each Ray node: verl's resource pool refuses more",
            fix="set trainer.gpus=1, and use the cores with trainer.threads",
        )
    elif training.nodes != 1 and not case.recipe.ray.address:
        yield error(
            "gpus.nodes",
            what=f"trainer.nodes={training.nodes}, but the recipe names no Ray",
            why="the Ray that a run starts has only this machine: verl's resource pool refuses more nodes",
            fix="start Ray on all nodes and set ray.address=HOST:6379 (docs/recipes.md, Two nodes), or trainer.nodes=1",
        )


def _each(case: Case) -> Iterator[Finding]:
    cards = case.machine.gpus
    used = {number for part in ("trainer", "retriever", "generator") for number in case.placed(part)}
    for gpu in cards:
        if gpu.index in used and gpu.total - gpu.free > DRIVER + (512 << 20):
            yield error(
                "gpus.busy",
                what=f"on GPU {gpu.index} ({gpu.name}) other processes use {gib(gpu.total - gpu.free)}",
                why="vLLM takes a share of the whole card's memory, and fails if that much is not free",
                fix=f"nvidia-smi -i {gpu.index} lists the processes; stop them, or take this GPU out of "
                "CUDA_VISIBLE_DEVICES",
            )
        if gpu.index in used and gpu.capability is not None and gpu.capability < OLDEST:
            yield error(
                "gpus.too-old",
                what=f"GPU {gpu.index} ({gpu.name}) has compute capability {gpu.capability[0]}.{gpu.capability[1]}",
                why="bfloat16 and flash-attention 2 need 8.0 (A100, RTX 30) or newer",
                fix="take this GPU out of CUDA_VISIBLE_DEVICES",
            )
    trainers = [gpu for gpu in cards if gpu.index in case.placed("trainer")]
    if len({gpu.total for gpu in trainers}) > 1:
        yield warning(
            "gpus.unequal",
            what="the trainer's GPUs have different memory: " + ", ".join(gib(gpu.total) for gpu in trainers),
            why="every rank holds an equal share: the smallest card decides, and memory of the others stays unused",
            fix="place gpus.trainer on equal cards",
        )
    yield from _driver(case)


def _driver(case: Case) -> Iterator[Finding]:
    host = case.machine.host
    if host is None or host.cuda is None:
        return
    needed = DRIVERS.get(int(host.cuda.partition(".")[0]))
    for driver in sorted({gpu.driver for gpu in case.machine.gpus if gpu.driver}):
        found = tuple(map(int, re.findall(r"\d+", driver)[:3]))
        if needed and found < needed[: len(found)]:
            yield error(
                "gpus.driver",
                what=f"the NVIDIA driver is {driver}, but torch is built for CUDA {host.cuda}",
                why=f"CUDA {host.cuda} needs driver {'.'.join(map(str, needed))} or newer: torch would find no device",
                fix="update the driver, or install a torch built for an older CUDA",
            )
