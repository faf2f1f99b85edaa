"""Trains the embedded recipe at a rate at which it often collapses, with and without what should prevent it.

    .venv/bin/python benchmarks/collapse.py [--variants plain,guard] [--seeds 0,1,2,3,4] [--at-once 2] [--out FOLDER]
                                            [SECTION.FIELD=VALUE ...]

Every run is a whole training with the recipe `cpu`, at four times its learning rate, with half of its questions a step
and four updates a step; the variants add the switches of docs/stability.md. 100 of the training questions are held
back, and runs validate on them alone, which is what the guard sees. The policy that a run keeps is then evaluated on
the embedded held-out questions, greedily. Finished runs are kept: after a stop, the same command continues with the
others.

`before` is the accuracy of the policy that every run starts with. A run has collapsed if its policy is below it.
`collapsed_share` is the share of such runs, `mean_accuracy` the mean of the others (`mean_of_all`: of all runs).
`seconds` is the mean time of a training of that variant, beside `at_once` - 1 others; `this_call_seconds` that of this
call, evaluations included. `others_share` is the share of the machine that other programs used meanwhile.
"""

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.main_job import Watch  # noqa: E402
from s3_agent.agl.cpu.precision import processor_name  # noqa: E402
from s3_agent.agl.guard import GuardReport  # noqa: E402
from s3_agent.data.files.whole import write_whole  # noqa: E402
from s3_agent.embedded import NANO_POLICY, TRAIN, VALIDATION  # noqa: E402
from s3_agent.evaluation.summary import Summary  # noqa: E402
from s3_agent.evaluation.table import EvaluationTable  # noqa: E402
from s3_agent.processes.run_folder import Run  # noqa: E402
from s3_agent.processes.stack import Interrupted  # noqa: E402
from s3_agent.recipe import Recipe, load_recipe  # noqa: E402
from s3_agent.training.side_by_side import (  # noqa: E402
    Job,
    addresses,
    require_same_plan,
    run_logged,
    say,
    sharing_cores,
    train_side_by_side,
)

LEARNING_RATE = 2e-3
UNSTABLE = [
    f"trainer.learning_rate={LEARNING_RATE}",
    "trainer.questions_per_step=8",
    "trainer.questions_per_update=2",
]
GUARD = ["trainer.guard.action=stop", "trainer.validate_every=2"]
LLDS = ["trainer.llds.weight=0.2"]
REFILL = ["trainer.spare_questions=2"]
VARIANTS = {
    "plain": [],
    "guard": GUARD,
    "llds": LLDS,
    "refill": REFILL,
    "clip_high": ["trainer.clip_high=0.28"],
    "kl": ["trainer.kl_loss=0.01"],
    "not_divided": ["trainer.verl.algorithm.norm_adv_by_std_in_grpo=false"],
    "importance_cap": ["trainer.importance_cap=2.0"],
    "cispo": ["trainer.verl.actor_rollout_ref.actor.policy_loss.loss_mode=cispo_per_rollout_mean"],
    "search_cost": ["agent.search_cost=0.05"],
    "guard+llds": [*GUARD, *LLDS],
    "guard+llds+refill": [*GUARD, *LLDS, *REFILL],
}
DEFAULT = "plain,guard,llds,refill,guard+llds+refill"
SEEN_BY_GUARD = 100


def split(out: Path) -> list[str]:
    """Write training questions and those that the guard sees; the overrides that name them."""
    lines = TRAIN.read_text(encoding="utf-8").splitlines(keepends=True)
    seen = set(random.Random(0).sample(range(len(lines)), SEEN_BY_GUARD))
    parts = {"train": [], "validation": []}
    for number, line in enumerate(lines):
        parts["validation" if number in seen else "train"].append(line)
    for name, rows in parts.items():
        write_whole(out / f"{name}.jsonl", "".join(rows))
    return [f"data.{name}={out / name}.jsonl" for name in parts]


def jobs_of(options: argparse.Namespace, out: Path) -> list[Job]:
    """Every variant with every seed, one seed after the other."""
    data = split(out)
    jobs = []
    for seed in options.seeds:
        for name in options.variants:
            recipe = load_recipe("cpu", [*UNSTABLE, *data, f"seed={seed}", *VARIANTS[name], *options.overrides])
            places = {"name": f"{name.replace('+', '-')}-seed{seed}", "runs": out / "runs"}
            jobs.append(Job(name, sharing_cores(recipe, options.at_once).model_copy(update=places)))
    return jobs


def evaluation_of(name: str, out: Path) -> Path:
    return out / "evaluations" / name


async def evaluate(name: str, settings: Run, services: Recipe, out: Path, *, policy: Sequence[str]) -> None:
    """Evaluate a policy on the held-out questions, with the settings of a run."""
    folder = evaluation_of(name, out)
    if (folder / "table.json").exists():
        return
    start = [sys.executable, "-m", "s3_agent.cli", "eval", "--recipe", str(settings.recipe), "--agents", "s3", *policy]
    options = ["--data", str(VALIDATION), "--sampling", "greedy", "--out", str(folder), "--plain"]
    await run_logged([*start, *options, *addresses(services)], out / "logs" / f"{name}-evaluation.log")


def accuracy(folder: Path) -> float:
    """The accuracy of a complete evaluation."""
    table = EvaluationTable.model_validate_json((folder / "table.json").read_bytes())
    assert not any(agent.failed for agent in table.agents), f"results are missing in {folder}"
    return table.agents[0].overall["gen_acc"].mean


def told_of(job: Job, out: Path) -> dict[str, Any]:
    summary = Summary.model_validate_json(job.run.summary.read_bytes())
    guard: GuardReport | None = summary.guard
    return {
        "seed": job.recipe.seed,
        "accuracy": round(accuracy(evaluation_of(job.name, out)), 4),
        "steps": summary.steps,
        "kept_step": guard.best_step if guard is not None and guard.stopped else summary.steps,
        "guard": guard and guard.reason,
        "searches_after": round(summary.searches_after, 2),
        "lost_rollouts": summary.lost_rollouts,
        "seconds": round(summary.wall_seconds, 1),
    }


def told_of_variant(name: str, runs: Sequence[dict[str, Any]], before: float) -> dict[str, Any]:
    """The numbers of a variant from those of its runs.

    >>> runs = [{"accuracy": 0.7, "seconds": 10.0}, {"accuracy": 0.4, "seconds": 20.0}]
    >>> told = told_of_variant("plain", runs, before=0.5)
    >>> told["collapsed_share"], told["mean_accuracy"], told["mean_of_all"], told["seconds"]
    (0.5, 0.7, 0.55, 15.0)
    """
    rest = [run["accuracy"] for run in runs if run["accuracy"] >= before]
    return {
        "name": name,
        "overrides": VARIANTS[name],
        "seeds": len(runs),
        "collapsed_share": round(1 - len(rest) / len(runs), 3),
        "mean_accuracy": round(statistics.fmean(rest), 4) if rest else None,
        "mean_of_all": round(statistics.fmean(run["accuracy"] for run in runs), 4),
        "seconds": round(statistics.fmean(run["seconds"] for run in runs), 1),
        "runs": list(runs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", type=lambda text: text.split(","), default=DEFAULT.split(","))
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2, 3, 4])
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/collapse"))
    parser.add_argument("overrides", nargs="*", help="values of the recipe, for all runs")
    options = parser.parse_args()
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    jobs = jobs_of(options, out)
    require_same_plan(jobs, out)
    watch, began = Watch(), time.monotonic()

    async def kept(job: Job, services: Recipe) -> None:
        if job is jobs[0]:
            await evaluate("before", job.run, services, out, policy=["--policy", f"s3={NANO_POLICY}"])
        await evaluate(job.name, job.run, services, out, policy=["--run", str(job.run.folder)])

    try:
        train_side_by_side(jobs, out, at_once=options.at_once, then=kept)
    except Interrupted as interrupted:
        say(f"stopped by {interrupted}; the same command continues")
        raise SystemExit(interrupted.code) from None
    before = accuracy(evaluation_of("before", out))
    runs = {name: [told_of(job, out) for job in jobs if job.label == name] for name in options.variants}
    whole = time.monotonic() - began
    told = {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "others_share": round(watch.end() / whole / (os.cpu_count() or 1), 3),
        "recipe": [*UNSTABLE, *options.overrides],
        "steps": jobs[0].recipe.trainer.steps,
        "at_once": options.at_once,
        "before": round(before, 4),
        "this_call_seconds": round(whole, 1),
        "variants": [told_of_variant(name, found, before) for name, found in runs.items()],
    }
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
