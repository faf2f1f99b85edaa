"""Trains several recipes beside each other, on the same retriever, generator and cache of answers.

Used by `s3-agent compare` and by `benchmarks/collapse.py`. Each run is the main job in a separate process, with its own
gateway, key, ports, Ray and folder. Finished runs are kept: after a stop, the same call continues with the others.
"""

import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from s3_agent.data.files.whole import keep_private, write_whole
from s3_agent.data.tasks import load_tasks
from s3_agent.doctor.job import require_sound
from s3_agent.errors import ConfigError, LaunchError
from s3_agent.guard import printable
from s3_agent.processes.run_folder import Run, write_recipe
from s3_agent.processes.services import require_external, running_services
from s3_agent.processes.serving import with_answer_cache, with_precision
from s3_agent.processes.stack import last_lines
from s3_agent.recipe import Recipe
from s3_agent.rollout.process import ending_with_parent

STOP_S = 60.0
console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Job:
    """A run to be trained. Runs with the same label differ in their seed alone."""

    label: str
    recipe: Recipe

    @property
    def name(self) -> str:
        return self.recipe.name

    @property
    def run(self) -> Run:
        """The run's folder."""
        return Run(self.recipe.runs / self.name)


Then = Callable[[Job, Recipe], Awaitable[None]]
"""What follows a job's training while the services are there, whose addresses the recipe names."""


def sharing_cores(recipe: Recipe, at_once: int) -> Recipe:
    """The recipe for one of `at_once` runs on this machine."""
    if recipe.trainer.threads is not None:
        return recipe
    threads = max(1, (os.cpu_count() or 1) // at_once)
    return recipe.model_copy(update={"trainer": recipe.trainer.model_copy(update={"threads": threads})})


def require_same_plan(jobs: Sequence[Job], out: Path) -> None:
    """Raises ConfigError when the folder holds runs of another plan."""
    path = out / "plan.json"
    plan = json.dumps({job.name: job.recipe.model_dump(mode="json", exclude={"gateway"}) for job in jobs}, indent=1)
    if path.exists() and path.read_text(encoding="utf-8") != plan:
        raise ConfigError(
            f"{out} holds a comparison with other agents, seeds or settings", remedy="give --out another folder"
        )
    write_whole(path, plan)


def train_side_by_side(jobs: Sequence[Job], out: Path, *, at_once: int, then: Then | None = None) -> None:
    """Train the jobs that are not finished, `at_once` at a time. `then` follows each job, also a finished one.

    All jobs use the services of one recipe, and differ in what is trained. Raises S3AgentError, and Interrupted
    (`s3_agent.processes.stack`) when it is stopped.
    """
    left = [job for job in jobs if not job.run.finished]
    for base in {job.label: job.recipe for job in left}.values():
        require_external(base)
        require_sound(base)
    playing = [job.recipe for job in (left if then is None else jobs)]
    asking = next((recipe for recipe in playing if recipe.asks_generator), playing[0])
    tasks = [*load_tasks(asking.data.train), *load_tasks(asking.data.validation)]
    if any(task.protected for task in tasks):
        keep_private(out)
    asking = with_answer_cache(with_precision(asking), out, tasks)
    with running_services(asking) as (services, stack):  # each run has its own gateway
        asyncio.run(stack.while_alive(_train_all(jobs, services, out, at_once, then)))


async def _train_all(jobs: Sequence[Job], services: Recipe, out: Path, at_once: int, then: Then | None) -> None:
    slots = asyncio.Semaphore(at_once)
    async with asyncio.TaskGroup() as group:
        for job in jobs:
            group.create_task(_train(job, services, out, slots, then))


async def _train(job: Job, services: Recipe, out: Path, slots: asyncio.Semaphore, then: Then | None) -> None:
    async with slots:
        if job.run.finished:
            say(f"{job.label}, seed {job.recipe.seed}: already done")
        else:
            say(f"{job.label}, seed {job.recipe.seed}: training")
            started = time.monotonic()
            await run_logged(_command(job, services, out), out / "logs" / f"{job.name}.log")
            say(f"{job.label}, seed {job.recipe.seed}: done in {(time.monotonic() - started) / 60:.1f} minutes")
        if then is not None:
            await then(job, services)


def _command(job: Job, services: Recipe, out: Path) -> list[str]:
    """Start the run, or continue it where it was stopped."""
    run = job.run
    start = [sys.executable, "-m", "s3_agent.cli", "train", *addresses(services), "gateway.port=0"]
    if run.recipe.exists():
        return [*start, "--resume", str(run.folder), "--skip-doctor"]
    shutil.rmtree(run.folder, ignore_errors=True)  # it was stopped before its training started
    path = out / "recipes" / f"{job.name}.yaml"
    path.parent.mkdir(exist_ok=True)
    # Selections repeat over seeds and agents, and the generator is frozen: one cache for all of them.
    kept = {"cache": services.generator.cache, "identity": services.generator.identity}
    write_recipe(path, job.recipe.model_copy(update={"generator": job.recipe.generator.model_copy(update=kept)}))
    return [*start, "--recipe", str(path), "--name", job.name, "--skip-doctor"]


def addresses(services: Recipe) -> list[str]:
    """The overrides by which another process uses these services."""
    found = [f"retriever.url={services.retriever_url}"]
    if (generator := services.generator_url) and services.generator.hosted:
        found.append(f"generator.url={generator}")
    return found


async def run_logged(command: Sequence[str], log: Path) -> None:
    """Run a command that ends with this process, with its output in `log`. Raises LaunchError when it fails."""
    log.parent.mkdir(exist_ok=True)
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *ending_with_parent(command), stdout=output, stderr=output, start_new_session=True
        )
    try:
        code = await process.wait()
    except asyncio.CancelledError:
        process.terminate()  # it stops its own processes
        await asyncio.wait_for(process.wait(), STOP_S)
        raise
    if code:
        raise LaunchError(
            f"{log.stem} ended with exit code {code}; its log {log} ends:\n{last_lines(log)}",
            remedy="fix what the log names; the same command then continues",
        )


def say(line: str) -> None:
    """Print a line of progress."""
    console.print(printable(line), highlight=False, markup=False, soft_wrap=True)
