"""Finds the machine that a recipe needs: the smallest common cards on which all its services and the trainer fit."""

from dataclasses import replace

from s3_agent.doctor.case import Case
from s3_agent.doctor.checks.memory import check_caches, plans
from s3_agent.machine.description import Machine, described

CARDS_GB = (16, 24, 40, 48, 80, 96, 141)


def smallest_machine(case: Case) -> Machine | None:
    """The smallest machine with as many cards as the recipe uses; None for a CPU recipe, or if no card suffices."""
    if not case.cuda:
        return None
    placed = [number for part in ("trainer", "retriever", "generator") for number in case.recipe.gpus.of(part) or ()]
    count = max(placed, default=case.recipe.trainer.gpus - 1) + 1
    for size in CARDS_GB:
        machine = described(f"{count}x{size}gb")
        there = replace(case, machine=machine)
        if all(plan.fits for plan in plans(there)) and not any(check_caches(there)):
            return machine
    return None
