"""Checks whether the disks have room for checkpoints, policy, index and caches; sizes are computed from the model."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from retrieval_server.index_kinds import kind_of
from s3_agent.doctor.activations import WIDTH
from s3_agent.doctor.case import Case
from s3_agent.doctor.findings import Finding, error
from s3_agent.doctor.memory import gib
from s3_agent.doctor.trainer_memory import state_bytes
from s3_agent.doctor.training import Training


def _checkpoint_bytes(case: Case, training: Training, parameters: int) -> int | None:
    """Bytes of one checkpoint: weights, Adam's moments and, with `checkpoint_policy`, a Hugging Face folder.

    Every rank writes its shard, also where several ranks hold the same one. None for adapters of an unknown model.
    """
    width = WIDTH[training.model_dtype]
    if (shape := case.shape("policy")) is not None:
        state = state_bytes(shape, training)
        shards = training.ranks * (state["weights"] + state["optimizer"])
    elif training.lora_rank:
        return None
    else:
        shards = 3 * width * parameters * training.ranks // training.shards
    return shards + (parameters * width if case.recipe.trainer.checkpoint_policy else 0)


def _parameters(case: Case) -> int | None:
    return case.recipe.policy.parameters if (shape := case.shape("policy")) is None else shape.parameters


def disk_items(case: Case) -> list[tuple[Path, str, int]]:
    """What a run adds to the disks, as (path, what, bytes)."""
    items: list[tuple[Path, str, int]] = []
    training = case.training
    if training is not None and (parameters := _parameters(case)) is not None:
        if (size := _checkpoint_bytes(case, training, parameters)) is not None:
            count = case.recipe.trainer.most_checkpoints
            more = max(0, count * size - case.written)
            items.append((case.recipe.runs, f"{count} checkpoints of {gib(size)}", more))
        exported = WIDTH[training.model_dtype] if case.recipe.trainer.checkpoint_policy else 2
        items.append((case.recipe.runs, "the trained policy", exported * parameters))
    if case.index is not None and case.recipe.retriever.url is None and case.index.problem is not None:
        settings, index = case.recipe.retriever.index, case.index
        need = kind_of(settings).need(settings, passages=index.passages, dimension=index.dimension, cards=1)
        items.append((case.recipe.prepared, "the index", need.disk))
    if case.recipe.agent.asks_generator:
        caches = case.recipe.generator.cache_bytes + case.recipe.judge.cache_bytes
        items.append((case.recipe.generator.cache or case.recipe.runs, "cached answers and verdicts", caches))
    return items


def disk_lines(case: Case) -> Iterator[str]:
    """What a run adds to each folder, and what its disk has free."""
    of_folder: dict[Path, list[tuple[str, int]]] = defaultdict(list)
    for path, what, size in disk_items(case):
        of_folder[path].append((what, size))
    for path, items in of_folder.items():
        free = case.machine.host.disks.get(path) if case.machine.host else None
        parts = ", ".join(f"{what}: {gib(size)}" for what, size in items)
        left = f"; {gib(free.free)} are free" if free else ""
        yield f"disk in {path}: {gib(sum(size for _, size in items))} ({parts}){left}"


def check_disk(case: Case) -> Iterator[Finding]:
    """Whether each file system has room for what a run writes to it."""
    if (host := case.machine.host) is None:
        return
    wanted: dict[int, list[tuple[Path, str, int]]] = defaultdict(list)
    for path, what, size in disk_items(case):
        if path in host.disks:
            wanted[host.disks[path].device].append((path, what, size))
    free = {disk.device: disk.free for disk in host.disks.values()}
    for device, items in wanted.items():
        needed = sum(size for _, _, size in items)
        if needed <= free[device]:
            continue
        path, what, size = max(items, key=lambda item: item[2])
        yield error(
            "disk.full",
            what=f"the disk of {path} has {gib(free[device])} free, but a run writes {gib(needed)}",
            why=f"the largest item is {what} ({gib(size)}); a checkpoint that can not be written ends the run",
            fix="set runs=/a/larger/disk, trainer.checkpoints_kept=2, or a larger trainer.checkpoint_every",
        )
