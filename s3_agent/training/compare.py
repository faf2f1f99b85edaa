"""Trains agents side by side: one recipe, one retriever, one generator, the same questions; only the agent differs.

Called by `s3-agent compare`. Each run is the main job in a separate process, with its own gateway, key, ports, Ray and
folder. Finished runs are kept: after a stop, the same command continues with the others.
"""

import asyncio
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from s3_agent.data.files.whole import keep_private, write_whole
from s3_agent.data.tasks import load_tasks, read_jsonl
from s3_agent.doctor.job import require_sound
from s3_agent.errors import ConfigError, LaunchError
from s3_agent.evaluation.comparison import Comparison, TrainedRun, compare, read_run, unseen
from s3_agent.evaluation.report.render import write_report
from s3_agent.evaluation.views.comparison import comparison_markdown, terminal_comparison
from s3_agent.guard import printable
from s3_agent.processes.run_folder import Run, write_recipe
from s3_agent.processes.services import require_external, running_services
from s3_agent.processes.serving import with_answer_cache, with_precision
from s3_agent.processes.stack import Interrupted, last_lines
from s3_agent.recipe import Recipe, require_trainable
from s3_agent.rollout.process import ending_with_parent
from s3_agent.training.weights import largest_change

SHUFFLED = "s3_agent.rollout.worker.controls:ShuffledRewards"
STOP_S = 60.0
console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class ComparisonRequest:
    """Which agents, by name or as `module:Class`, with which seeds, how many runs at once, and the output folder."""

    agents: Sequence[str]
    seeds: Sequence[int]
    at_once: int
    controls: bool
    out: Path


@dataclass(frozen=True, slots=True)
class _Job:
    label: str
    recipe: Recipe

    @property
    def name(self) -> str:
        return self.recipe.name


def _jobs(recipe: Recipe, request: ComparisonRequest) -> tuple[list[_Job], str | None, str | None]:
    """Every run, ordered by seed first, and the labels of the two controls of the first agent."""

    def job(label: str, base: Recipe, seed: int) -> _Job:
        name = f"{re.sub('[^A-Za-z0-9_]+', '-', label)}-seed{seed}"
        return _Job(label, base.model_copy(update={"name": name, "seed": seed, "runs": request.out / "runs"}))

    if recipe.gateway.url or recipe.workers.external:
        raise ConfigError(
            "each run of a comparison has its own gateway and workers",
            remedy="remove gateway.url and workers.external",
        )
    if recipe.trainer.threads is None:  # parallel runs share the processor
        threads = max(1, (os.cpu_count() or 1) // request.at_once)
        recipe = recipe.model_copy(update={"trainer": recipe.trainer.model_copy(update={"threads": threads})})
    bases = {label: recipe.of_agent(label) for label in request.agents}
    for base in bases.values():
        require_trainable(base)
    jobs = [job(label, base, seed) for seed in request.seeds for label, base in bases.items()]
    if not request.controls:
        return jobs, None, None
    first = request.agents[0]
    if ":" in first:
        raise ConfigError(
            f"controls are runs of the first agent, and we can not shuffle the rewards of the class {first}",
            remedy="name s3 or search_r1 first, or give --no-controls",
        )
    base, seed = bases[first], request.seeds[0]
    local = base.local.model_copy(update={"agent_class": SHUFFLED, "native": True})
    shuffled = job(f"{first}, rewards shuffled", base.model_copy(update={"local": local}), seed)
    trainer = base.trainer.model_copy(update={"learning_rate": 0.0})
    frozen = job(f"{first}, learning rate 0", base.model_copy(update={"trainer": trainer}), seed)
    return [*jobs, shuffled, frozen], shuffled.label, frozen.label


def _require_same_plan(jobs: Sequence[_Job], out: Path) -> None:
    """Raises ConfigError when the folder holds runs of another plan."""
    path = out / "plan.json"
    plan = json.dumps({job.name: job.recipe.model_dump(mode="json", exclude={"gateway"}) for job in jobs}, indent=1)
    if path.exists() and path.read_text(encoding="utf-8") != plan:
        raise ConfigError(
            f"{out} holds a comparison with other agents, seeds or settings", remedy="give --out another folder"
        )
    write_whole(path, plan)


def _command(job: _Job, services: Recipe, out: Path) -> list[str]:
    """Start the run, or continue it where it was stopped."""
    run = Run(job.recipe.runs / job.name)
    addresses = [f"retriever.url={services.retriever_url}", "gateway.port=0"]
    if (generator := services.generator_url) and services.generator.hosted:
        addresses.append(f"generator.url={generator}")
    start = [sys.executable, "-m", "s3_agent.cli", "train", *addresses]
    if run.recipe.exists():
        return [*start, "--resume", str(run.folder), "--skip-doctor"]
    shutil.rmtree(run.folder, ignore_errors=True)  # it was stopped before its training started
    path = out / "recipes" / f"{job.name}.yaml"
    path.parent.mkdir(exist_ok=True)
    # Selections repeat over seeds and agents, and the generator is frozen: one cache for all of them.
    kept = {"cache": services.generator.cache, "identity": services.generator.identity}
    write_recipe(path, job.recipe.model_copy(update={"generator": job.recipe.generator.model_copy(update=kept)}))
    return [*start, "--recipe", str(path), "--name", job.name, "--skip-doctor"]


async def _train(job: _Job, services: Recipe, out: Path, slots: asyncio.Semaphore) -> None:
    run = Run(job.recipe.runs / job.name)
    if run.finished:
        _say(f"{job.label}, seed {job.recipe.seed}: already done")
        return
    async with slots:
        started, log = time.monotonic(), out / "logs" / f"{job.name}.log"
        log.parent.mkdir(exist_ok=True)
        _say(f"{job.label}, seed {job.recipe.seed}: training")
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *ending_with_parent(_command(job, services, out)), stdout=output, stderr=output, start_new_session=True
            )
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            process.terminate()  # it stops its own processes
            await asyncio.wait_for(process.wait(), STOP_S)
            raise
        if code:
            raise LaunchError(
                f"the run {job.name} ended with exit code {code}; its log {log} ends:\n{last_lines(log)}",
                remedy="fix what the log names; the same command then continues",
            )
        _say(f"{job.label}, seed {job.recipe.seed}: done in {(time.monotonic() - started) / 60:.1f} minutes")


async def _train_all(jobs: Sequence[_Job], services: Recipe, request: ComparisonRequest) -> None:
    slots = asyncio.Semaphore(request.at_once)
    async with asyncio.TaskGroup() as group:
        for job in jobs:
            group.create_task(_train(job, services, request.out, slots))


def _result(jobs: Sequence[_Job], recipe: Recipe, shuffled: str | None, frozen: str | None) -> Comparison:
    runs: list[TrainedRun] = []
    for job in jobs:
        run = Run(job.recipe.runs / job.name)
        moved = largest_change(job.recipe.policy.model, run.policy)
        runs.append(read_run(run.folder, label=job.label, seed=job.recipe.seed, moved=moved))
    split = unseen(read_jsonl(recipe.data.train), read_jsonl(recipe.data.validation))
    validation = Run(jobs[0].recipe.runs / jobs[0].name).validation
    return compare(runs, validation=validation, shuffled=shuffled, frozen=frozen, split=split)


def compare_job(recipe: Recipe, request: ComparisonRequest) -> int:
    """Train every agent with every seed, compare, and print; 0 when every control holds. Raises S3AgentError."""
    started = time.monotonic()
    for named in (request.agents, request.seeds):
        if len(set(named)) < len(named):
            raise ConfigError(f"an agent or a seed is named twice: {named}", remedy="name each once")
    jobs, shuffled, frozen = _jobs(recipe, request)
    _require_same_plan(jobs, request.out)
    left = [job for job in jobs if not Run(job.recipe.runs / job.name).finished]
    if left:
        require_external(recipe)
        for base in {job.label: job.recipe for job in left}.values():
            require_sound(base)
        asking = next((job.recipe for job in left if job.recipe.asks_generator), left[0].recipe)
        tasks = [*load_tasks(recipe.data.train), *load_tasks(recipe.data.validation)]
        if any(task.protected for task in tasks):
            keep_private(request.out)
        try:
            asking = with_answer_cache(with_precision(asking), request.out, tasks)
            with running_services(asking) as (services, stack):  # each run has its own gateway
                asyncio.run(stack.while_alive(_train_all(jobs, services, request)))
        except Interrupted as interrupted:
            _say(f"stopped by {interrupted}; finished runs are kept in {request.out}; the same command continues")
            return interrupted.code
    comparison = _result(jobs, recipe, shuffled, frozen)
    write_whole(request.out / "comparison.json", comparison.model_dump_json(indent=1))
    write_whole(request.out / "comparison.md", comparison_markdown(comparison))
    write_report([job.recipe.runs / job.name for job in jobs], request.out / "report.html")
    Console().print(terminal_comparison(comparison))
    minutes = (time.monotonic() - started) / 60
    _say(f"{minutes:.1f} minutes; {request.out}/comparison.json, comparison.md, report.html")
    return int(not comparison.sound)


def _say(line: str) -> None:
    console.print(printable(line), highlight=False, markup=False, soft_wrap=True)
