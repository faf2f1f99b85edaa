"""The plan of a run: its processes, GPUs, ports, commands and files, without starting anything.

Called by `s3-agent train --dry-run`. It needs neither a GPU nor verl, vLLM or torch: it reads only the recipe and the
files on this machine.
"""

import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from s3_agent.agl.verl_config import TrainerRecipe, settings_alone, updates_per_step
from s3_agent.printing import print_lines
from s3_agent.processes.commands import generator_options, retriever_command, vllm_command
from s3_agent.processes.gpus import shared_with
from s3_agent.processes.parts import service_parts, training_parts
from s3_agent.processes.run_folder import Run
from s3_agent.recipe import Recipe
from s3_agent.training.job import trainer_settings

Extra = Callable[[Recipe], Iterable[str | Table]]
"""Lines and tables that another package adds to the plan, e.g. the plan of memory and disks."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the run. `gpus` is None when the recipe places nothing; `port` is None when it does not listen."""

    name: str
    gpus: list[int] | None
    port: int | None
    command: str


@dataclass(frozen=True, slots=True)
class File:
    """A file or folder that the run reads."""

    what: str
    path: Path

    @property
    def state(self) -> str:
        """Its size in bytes, or a note that it is missing."""
        if self.path.is_dir():
            return "there"
        return f"{self.path.stat().st_size:,} bytes" if self.path.exists() else "missing"


@dataclass(frozen=True, slots=True)
class Plan:
    """A run that was not started: its recipe, processes and files."""

    recipe: Recipe
    processes: list[Process]
    files: list[File]


def make_plan(recipe: Recipe) -> Plan:
    """The plan of a run with `recipe`."""
    run = Run(recipe.runs / recipe.name)
    parts = [*service_parts(recipe, run), *training_parts(recipe, run, key="")]
    ports = {name: getattr(recipe, name).port for name in ("retriever", "generator", "gateway")}
    # The commands that our subcommands `serve` and `generator` run, without creating the embedded generator's files.
    generator = recipe.generator
    becomes = {
        "retriever": retriever_command(recipe, port=recipe.retriever.port),
        "generator": vllm_command(
            generator.model,
            generator.model,
            port=generator.port,
            options=generator_options(recipe),
            python=generator.python,
        ),
    }
    processes = [
        Process(
            part.name,
            recipe.gpus.of(part.name),
            ports.get(part.name),
            _shown(becomes.get(part.name, part.command)),
        )
        for part in parts
    ]
    return Plan(recipe, processes, _files(recipe))


def _shown(command: Sequence[str]) -> str:
    interpreter = "python" if command[0] == sys.executable else command[0]
    return shlex.join([interpreter, *command[1:]])


def _files(recipe: Recipe) -> list[File]:
    data = recipe.data
    files = [File("training tasks", data.train), File("validation", data.validation)]
    if recipe.retriever.url is not None or recipe.serves_corpus:
        files.insert(0, File("corpus", data.corpus))
    if data.rag_cache is not None:
        files.append(File("RAG cache", data.rag_cache))
    if recipe.retriever.url is None:
        files.append(File("index", recipe.index_folder))
    return files


def _processes(plan: Plan) -> Table:
    table = Table(title=f"{plan.recipe.name}: processes")
    for name in ("process", "GPUs", "port"):
        table.add_column(name)
    for process in plan.processes:
        gpus = "all" if process.gpus is None else ", ".join(map(str, process.gpus)) or "none"
        if process.gpus and (others := shared_with(plan.recipe, process.name)):
            gpus += f" (with {', '.join(others)})"
        table.add_row(process.name, gpus, "" if process.port is None else str(process.port or "any free"))
    return table


def _files_table(plan: Plan) -> Table:
    table = Table(title="files")
    for name in ("what", "where", ""):
        table.add_column(name, overflow="fold")
    for file in plan.files:
        table.add_row(file.what, escape(str(file.path)), file.state)
    return table


def _kl_line(kl_loss: float, told: float, updates: int) -> list[str]:
    if not kl_loss:
        return []
    why = f": Agent Lightning divides the loss of an update by the rows of all {updates}" if told != kl_loss else ""
    return [f"KL: {kl_loss:g} beside the policy's loss; verl gets {told:g}{why}"]


def _ahead_line(trainer: TrainerRecipe) -> list[str]:
    if not trainer.async_questions:
        return []
    cap = "not corrected" if trainer.importance_cap is None else f"weights of at most {trainer.importance_cap:g}"
    return [
        f"asynchronous: {trainer.rollouts_in_play} rollouts in play; {trainer.async_questions} questions are carried "
        f"over into the next step, tokens of an earlier policy: {cap}"
    ]


def _lines(plan: Plan) -> list[str]:
    recipe, trainer = plan.recipe, plan.recipe.trainer
    told = settings_alone(trainer_settings(recipe, Run(recipe.runs / recipe.name), validation_size=1))
    updates = updates_per_step(told)
    return [
        f"policy: {recipe.policy.model} on {trainer.gpus} x {trainer.device}"
        f"{f' of each of {trainer.nodes} nodes' if trainer.nodes > 1 else ''}; agent: {recipe.agent.name}",
        f"steps: {trainer.steps} x {trainer.rollouts_per_step} rollouts ({trainer.questions_played} questions x "
        f"{trainer.rollouts_per_question}) = {trainer.steps * trainer.rollouts_per_step:,}, {updates} updates a step",
        *_ahead_line(trainer),
        *_kl_line(trainer.kl_loss, told.actor_rollout_ref.actor.kl_loss_coef, updates),
        f"rollouts at a time: {recipe.workers.processes * recipe.workers.concurrency:,} "
        f"({recipe.workers.processes} processes x {recipe.workers.concurrency})",
        f"validation: {recipe.data.validation_size or 'all'} questions before training and after every "
        f"{trainer.validate_every or trainer.steps} steps",
        f"metrics: {recipe.runs}/NAME/metrics.jsonl, {', '.join(trainer.trackers)}",
    ]


def dry_run(recipe: Recipe, *, extra: Extra = lambda _: ()) -> int:
    """Print the plan of a run; returns 0."""
    plan, console = make_plan(recipe), Console()
    console.print(_processes(plan), _files_table(plan))
    commands = [f"{process.name}: {process.command}" for process in plan.processes]
    for line in [*commands, "", *_lines(plan)]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    print_lines(console, extra(recipe))
    console.print("nothing was started", highlight=False)
    return 0
