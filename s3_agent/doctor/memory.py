"""The memory plan: the items that each GPU must hold in each phase of a step, and whether they fit.

`checks.memory` builds the plans. An item is `computed` from shapes and settings, or `assumed`: an allowance for what
only a run can show. The allowances are the constants below, each with its meaning.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from s3_agent.machine.description import GIB, MIB

Basis = Literal["computed", "assumed"]

DRIVER = 700 * MIB  # what the driver keeps of a card: nvidia-smi's total minus torch's `total_memory`
CONTEXT = 600 * MIB  # CUDA context and loaded kernels of one process
COLLECTIVES = 700 * MIB  # NCCL's buffers on a card that shares a model with others
GRAPHS = 1200 * MIB  # vLLM's CUDA graphs, and whatever else it keeps while it sleeps
FRAGMENTS = 0.05  # share of the tensors' size: blocks of the caching allocator that are too small for any tensor


@dataclass(frozen=True, slots=True)
class Item:
    """One thing in memory, in bytes."""

    name: str
    size: int
    basis: Basis = "computed"


@dataclass(frozen=True, slots=True)
class Phase:
    """The items that are in memory at the same time. `change`: the settings that make its largest items smaller."""

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
    """The plan of one GPU, or of several equal ones.

    `indexes` are positions among the visible GPUs; `free` is how many bytes of each a run can use.
    """

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
    """The items, and the memory that the allocator loses between them."""
    lost = int(FRAGMENTS * sum(item.size for item in items if item.basis == "computed"))
    return (*items, Item("allocator fragments", lost, "assumed"))


def gib(size: float) -> str:
    """Bytes as GiB."""
    return f"{size / GIB:.1f} GiB"


def as_text(plans: Sequence[Plan]) -> str:
    """The plan as lines: each GPU, and each of its phases with its items."""
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
    return "\n".join([*lines, "* assumed; everything else is computed from shapes and settings"])


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
