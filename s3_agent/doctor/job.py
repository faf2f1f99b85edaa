"""Runs `s3-agent doctor`, and the same checks before training; prints the memory plan and the findings, or JSON."""

import json
from dataclasses import replace

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from s3_agent.doctor import findings as told
from s3_agent.doctor import memory
from s3_agent.doctor.case import Case
from s3_agent.doctor.checks.disk import disk_lines
from s3_agent.doctor.checks.memory import plans, ram_items
from s3_agent.doctor.examine import examine
from s3_agent.doctor.findings import Finding
from s3_agent.doctor.gather import gather
from s3_agent.doctor.limits import limits, rollouts_at_once
from s3_agent.doctor.sizing import smallest_machine
from s3_agent.errors import ConfigError
from s3_agent.machine.description import described
from s3_agent.printing import print_lines
from s3_agent.processes.run_folder import Run
from s3_agent.recipe import Recipe

console = Console(stderr=True)


def plan_lines(case: Case) -> list[str]:
    """The memory plan of each GPU, and the RAM and disk space that are expected. Without a GPU: the plan for the
    smallest cards that suffice.
    """
    lines = []
    if case.cuda and not case.machine.gpus and (machine := smallest_machine(case)) is not None:
        lines = [f"no GPU is visible; planned for {machine.name}, the smallest common cards on which the recipe fits:"]
        case = replace(case, machine=replace(case.machine, gpus=machine.gpus))
    if found := plans(case):
        lines += memory.as_text(found).split("\n")
    items = {name: size for name, size in ram_items(case).items() if size >= memory.MIB}
    if items:
        parts = ", ".join(f"{name} {memory.gib(size)}" for name, size in items.items())
        lines.append(f"RAM: {memory.gib(sum(items.values()))} ({parts}), in addition to the processes themselves")
    return [*lines, *disk_lines(case)]


def dry_run_extra(recipe: Recipe) -> list[str | Table]:
    """For a dry run: what the doctor plans, also on a machine without a GPU, and the limits of all processes."""
    case = gather(recipe)
    return [*plan_lines(case), _limits_table(case)]


def _limits_table(case: Case) -> Table:
    table = Table(title=f"limits, for {rollouts_at_once(case):,} rollouts at a time")
    for name in ("where", "what", "at most", "needed", "the excess"):
        table.add_column(name, overflow="fold")
    for row in limits(case):
        most = "no limit" if row.most is None else f"{row.most:,}"
        style = "yellow" if row.too_small and row.report else None
        table.add_row(Text(row.place), row.what, most, f"{row.needed:,}", row.beyond, style=style)
    return table


def doctor_job(recipe: Recipe, *, machine: str | None = None, as_json: bool = False) -> int:
    """Print the plan and the findings; returns 0 when a run can start, else 1.

    Raises ConfigError when `machine` does not describe a machine.
    """
    case = gather(recipe, machine=None if machine is None else described(machine))
    found = examine(case)
    failed = bool(told.errors(found))
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "recipe": recipe.name,
                    "machine": case.machine.name,
                    "checked_files": case.machine.host is not None,
                    "findings": told.as_rows(found),
                    "memory": memory.as_rows(plans(case)),
                    "ram": ram_items(case),
                },
                indent=1,
            )
        )
        return int(failed)
    lines = plan_lines(case)
    if case.machine.host is None:
        lines.append(f"{case.machine.name} is only described: disk, RAM, ports, files and versions were not checked")
    print_lines(Console(), [*lines, *(told.as_text(found) or "nothing found").split("\n")])
    return int(failed)


def require_sound(recipe: Recipe, *, run: Run | None = None) -> None:
    """Print the warnings; raise ConfigError with the errors. `train` calls it before it starts anything.

    `run` is the run that is resumed: the checkpoints that it already has need no more room on the disk.
    """
    found = examine(gather(recipe, run=run))
    wrong = told.errors(found)
    if mild := [finding for finding in found if finding not in wrong]:
        print_lines(console, told.as_text(mild).split("\n"))
    if wrong:
        raise ConfigError(_summary(recipe, wrong), remedy="fix these, or train with --skip-doctor")


def _summary(recipe: Recipe, wrong: list[Finding]) -> str:
    return f"the recipe {recipe.name} can not run here:\n{told.as_text(wrong)}"
