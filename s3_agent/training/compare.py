"""Trains agents side by side: one recipe, one retriever, one generator, the same questions; only the agent differs.

Called by `s3-agent compare`."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from s3_agent.data.files.whole import write_whole
from s3_agent.data.tasks import read_jsonl
from s3_agent.errors import ConfigError
from s3_agent.evaluation.comparison import Comparison, TrainedRun, compare, read_run, unseen
from s3_agent.evaluation.report.render import write_report
from s3_agent.evaluation.views.comparison import comparison_markdown, terminal_comparison
from s3_agent.processes.stack import Interrupted
from s3_agent.recipe import Recipe, require_trainable
from s3_agent.training.side_by_side import Job, require_same_plan, say, sharing_cores, train_side_by_side
from s3_agent.training.weights import largest_change

SHUFFLED = "s3_agent.rollout.worker.controls:ShuffledRewards"


@dataclass(frozen=True, slots=True)
class ComparisonRequest:
    """Which agents, by name or as `module:Class`, with which seeds, how many runs at once, and the output folder."""

    agents: Sequence[str]
    seeds: Sequence[int]
    at_once: int
    controls: bool
    out: Path


def _jobs(recipe: Recipe, request: ComparisonRequest) -> tuple[list[Job], str | None, str | None]:
    """Every run, ordered by seed first, and the labels of the two controls of the first agent."""

    def job(label: str, base: Recipe, seed: int) -> Job:
        name = f"{re.sub('[^A-Za-z0-9_]+', '-', label)}-seed{seed}"
        return Job(label, base.model_copy(update={"name": name, "seed": seed, "runs": request.out / "runs"}))

    if recipe.gateway.url or recipe.workers.external:
        raise ConfigError(
            "each run of a comparison has its own gateway and workers",
            remedy="remove gateway.url and workers.external",
        )
    recipe = sharing_cores(recipe, request.at_once)
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


def _result(jobs: Sequence[Job], recipe: Recipe, shuffled: str | None, frozen: str | None) -> Comparison:
    runs: list[TrainedRun] = []
    for job in jobs:
        moved = largest_change(job.recipe.policy.model, job.run.policy)
        runs.append(read_run(job.run.folder, label=job.label, seed=job.recipe.seed, moved=moved))
    split = unseen(read_jsonl(recipe.data.train), read_jsonl(recipe.data.validation))
    validation = jobs[0].run.validation
    return compare(runs, validation=validation, shuffled=shuffled, frozen=frozen, split=split)


def compare_job(recipe: Recipe, request: ComparisonRequest) -> int:
    """Train every agent with every seed, compare, and print; 0 when every control holds. Raises S3AgentError."""
    started = time.monotonic()
    for named in (request.agents, request.seeds):
        if len(set(named)) < len(named):
            raise ConfigError(f"an agent or a seed is named twice: {named}", remedy="name each once")
    jobs, shuffled, frozen = _jobs(recipe, request)
    require_same_plan(jobs, request.out)
    if not all(job.run.finished for job in jobs):
        try:
            train_side_by_side(jobs, request.out, at_once=request.at_once)
        except Interrupted as interrupted:
            say(f"stopped by {interrupted}; finished runs are kept in {request.out}; the same command continues")
            return interrupted.code
    comparison = _result(jobs, recipe, shuffled, frozen)
    write_whole(request.out / "comparison.json", comparison.model_dump_json(indent=1))
    write_whole(request.out / "comparison.md", comparison_markdown(comparison))
    write_report([job.run.folder for job in jobs], request.out / "report.html")
    Console().print(terminal_comparison(comparison))
    minutes = (time.monotonic() - started) / 60
    say(f"{minutes:.1f} minutes; {request.out}/comparison.json, comparison.md, report.html")
    return int(not comparison.sound)
