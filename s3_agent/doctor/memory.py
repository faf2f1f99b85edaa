"""The memory plan: what each GPU must hold in each phase of a step, item by item, and the first that does not fit.

`computed` items follow from shapes and settings. `assumed` ones are allowances for what only a run shows: they are
constants below, each with what it stands for.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from s3_agent.machine.description import GIB, MIB

Basis = Literal["computed", "assumed"]

DRIVER = 700 * MIB  # of a card's memory the driver keeps: nvidia-smi's total less torch's `total_memory`
CONTEXT = 600 * MIB  # CUDA context and loaded kernels of one process
COLLECTIVES = 700 * MIB  # NCCL's buffers on a card that shares a model with others
GRAPHS = 1200 * MIB  # vLLM's CUDA graphs and what else sleeping does not give back
FRAGMENTS = 0.05  # of the tensors: the caching allocator's blocks that fit nothing


@dataclass(frozen=True, slots=True)
class Item:
    """One thing in memory, in bytes."""

    name: str
    size: int
    basis: Basis = "computed"


@dataclass(frozen=True, slots=True)
class Phase:
    """What is in memory at the same time. `change`: the settings that make its largest items smaller."""

    name: str
    items: tuple[Item, ...]
    change: str

    @property
    def size(self) -> int:
        """Bytes of all items."""
        return sum(item.size for item in self.items)

    @property
    def largest(self) -> Item:
        """The item that takes most."""
        return max(self.items, key=lambda item: item.size)


@dataclass(frozen=True, slots=True)
class Plan:
    """One GPU, or equal ones. `indexes` are positions among the visible GPUs; `free` is what a run may use of each."""

    part: str
    indexes: tuple[int, ...]
    free: int
    phases: tuple[Phase, ...]
    note: str = ""

    @property
    def peak(self) -> Phase:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.size)

    @property
    def fits(self) -> bool:
        """Whether every phase fits."""
        return self.peak.size <= self.free


def with_fragments(items: Sequence[Item]) -> tuple[Item, ...]:
    """The items and what the allocator loses between them."""
    lost = int(FRAGMENTS * sum(item.size for item in items if item.basis == "computed"))
    return (*items, Item("allocator fragments", lost, "assumed"))


def gib(size: float) -> str:
    """Bytes as GiB."""
    return f"{size / GIB:.1f} GiB"


def as_text(plans: Sequence[Plan]) -> str:
    """The plan as lines: a GPU's peak and what contributes to it."""
    lines = []
    for plan in plans:
        numbers = ",".join(map(str, plan.indexes))
        where = f"GPU {numbers}" if numbers else "RAM"
        lines.append(f"{where}: {plan.part}, {gib(plan.free)} usable{'; ' + plan.note if plan.note else ''}")
        for phase in plan.phases:
            verdict = "fits" if phase.size <= plan.free else f"{gib(phase.size - plan.free)} TOO MUCH"
            items = ", ".join(
                f"{item.name} {gib(item.size)}{'' if item.basis == 'computed' else '*'}"
                for item in sorted(phase.items, key=lambda item: -item.size)
                if item.size >= 50 * MIB
            )
            lines.append(f"  {phase.name}: {gib(phase.size)} {verdict} ({items or 'all below 0.05 GiB'})")
    return "\n".join([*lines, "* assumed; all else is computed from shapes and settings"])


def as_rows(plans: Sequence[Plan]) -> list[dict[str, Any]]:
    """The plan for JSON, in bytes."""
    return [
        {
            **asdict(plan),
            "peak": plan.peak.size,
            "fits": plan.fits,
            "phases": [{**asdict(phase), "size": phase.size} for phase in plan.phases],
        }
        for plan in plans
    ]
