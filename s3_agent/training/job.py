"""The main job: starts every process that a recipe needs, trains, and writes one summary; resumes a killed run.

Called by `s3-agent train`. A resumed run starts from the recipe in its own folder, not from that of the command line. A
run that the guard stopped, and that was killed before its summary was written, is only finished when it is resumed.
"""

import json
import secrets
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from s3_agent.agl.guard import GuardReport
from s3_agent.agl.verl_config import TrainerRecipe, TrainerSettings, ranks_of
from s3_agent.clients.connections import get
from s3_agent.clients.http import bearer
from s3_agent.data.files.whole import cut_torn_line, write_whole
from s3_agent.data.tasks import load_tasks, read_jsonl
from s3_agent.doctor.job import require_sound
from s3_agent.errors import ConfigError, LaunchError
from s3_agent.evaluation.summary import Summary, summarize
from s3_agent.evaluation.views.closing import closing_table
from s3_agent.guard import printable
from s3_agent.processes.keys import KEY_REMEDY, with_gateway_key
from s3_agent.processes.parts import service_parts, training_parts
from s3_agent.processes.ports import listening
from s3_agent.processes.run_folder import Run
from s3_agent.processes.services import require_external, resolve_ports, versions
from s3_agent.processes.serving import with_answer_cache, with_precision, with_served_identity
from s3_agent.processes.stack import Interrupted, Stack
from s3_agent.recipe import Recipe, load_recipe, require_trainable
from s3_agent.rollout.episode_log import read_records
from s3_agent.training.agent_environment import agent_class_of, env_map_of
from s3_agent.training.changes import changes, changes_of, record_changes, require_same, write_conditions
from s3_agent.training.export import Exported, keep_start, replace_policy
from s3_agent.training.kept_best import KeptBest, RunStopped, go_back_to_best
from s3_agent.training.prepared_tasks import prepare_tasks
from s3_agent.training.progress import Progress
from s3_agent.training.resume import (
    CheckpointBound,
    end_leftovers,
    read_report,
    require_ranks,
    rewind,
    unfinished_stop,
)
from s3_agent.training.task_order import write_tasks
from s3_agent.types import Task

console = Console(stderr=True)


def _with_any_ports(recipe: Recipe) -> Recipe:
    """The recipe of a resumed run: a port that is taken now is replaced by a free one."""
    names = ("retriever", "generator", "gateway")
    return recipe.model_copy(update={name: getattr(recipe, name).model_copy(update={"port": 0}) for name in names})


def require_empty_gateway(recipe: Recipe) -> None:
    """Raises LaunchError when a user's gateway still holds rollouts of the killed run: our pool would play them."""
    if recipe.gateway.url is None:
        return
    waiting = get(
        recipe.gateway.url + "/api/rollouts",
        params={"state_in": ["queuing", "running"], "limit": 1},
        headers=bearer(recipe.gateway.key),
        timeout=10.0,
    )
    if waiting.status_code != 200 or waiting.json():
        raise LaunchError(
            f"the gateway at {recipe.gateway.url} still holds rollouts of the killed run, or does not report them",
            remedy="restart it (its rollouts are only in memory), then resume",
        )


def trainer_settings(
    recipe: Recipe, run: Run, *, validation_size: int, generation: int = 0, done: int = 0
) -> TrainerSettings:
    """The trainer's settings for this recipe in this run, which continues after step `done`."""
    return TrainerSettings(
        **recipe.trainer.model_dump(include=set(TrainerRecipe.model_fields)),
        run=run.folder.name,
        generation=generation,
        model=recipe.policy.model,
        chat_template=recipe.policy.template.text(),
        agent_class=agent_class_of(recipe),
        env_map=env_map_of(recipe, run),
        gateway_url=recipe.gateway_url,
        checkpoints=run.checkpoints.resolve(),
        validation_size=validation_size,
        validate_first=done == 0,
        ray_address=recipe.ray.address,
        seed=recipe.seed,
    )


def train_job(recipe: Recipe, *, name: str | None = None) -> int:
    """Train with `recipe`; returns 0 after the last step. Raises S3AgentError; leaves no process running."""
    require_trainable(recipe)
    run = Run(recipe.runs / (name or f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"))
    return _train(recipe, run, resumed=False)


def resume_job(
    name: str, overrides: Sequence[str] = (), *, allow_changes: bool = False, skip_doctor: bool = False
) -> int:
    """Continue a run that was killed, or a finished run that gets more steps; returns and raises as `train_job`.

    `name` is its folder, or its name below `runs`. If the guard stopped the run and it has no summary yet, it gets its
    policy and its summary as if it had not been killed; nothing is trained. Raises ConfigError when the run does not
    exist, when its conditions have changed and `--allow-changes` is missing, and when the doctor finds an error and is
    not skipped.
    """
    runs = next((value.removeprefix("runs=") for value in overrides if value.startswith("runs=")), "runs")
    found = [folder for folder in (Path(name), Path(runs) / name) if (folder / "recipe.yaml").is_file()]
    if not found:
        raise ConfigError(f"there is no run {name!r}", remedy=f"give the folder of a run, or its name below {runs}")
    run = Run(found[0])
    recorded = load_recipe(str(run.recipe))
    if (stop := unfinished_stop(run)) is not None:
        return _finish_stopped(recorded, run, stop)
    recipe = load_recipe(str(run.recipe), overrides)
    found_changes = changes(run, recorded, recipe)
    require_same(run, found_changes, allowed=allow_changes)
    return _train(with_served_identity(recipe), run, resumed=True, changed=found_changes, skip_doctor=skip_doctor)


def _train(recipe: Recipe, run: Run, *, resumed: bool, changed: Sequence[str] = (), skip_doctor: bool = True) -> int:
    started = time.monotonic()
    recipe = with_gateway_key(recipe)
    if recipe.gateway.url and not recipe.gateway.key:
        raise ConfigError("the key of your own gateway is missing", remedy=KEY_REMEDY)
    if recipe.policy.mode != "tokens":
        raise ConfigError("chat messages carry no token ids to train on", remedy="leave policy.mode=tokens")
    require_external(recipe)
    prepared = prepare_tasks(recipe)
    train, validation = prepared.train, prepared.validation
    if (
        recipe.trainer.wandb_mode == "online"
        and "wandb" in recipe.trainer.trackers
        and any(task.protected for task in (*train, *validation))
    ):
        raise ConfigError(
            "Agent Lightning would upload the texts of protected questions to Weights & Biases",
            remedy="trainer.wandb_mode=offline, or another tracker",
        )
    with ExitStack() as held:
        if resumed:
            held.enter_context(run.held())
            left = end_leftovers(run)
            require_ranks(run, ranks_of(trainer_settings(recipe, run, validation_size=len(validation))))
            if not skip_doctor:
                require_sound(_with_any_ports(recipe), run=run)
            recipe = resolve_ports(recipe, any_free=True)
            require_empty_gateway(recipe)
            done = rewind(run, keep=recipe.trainer.checkpoints_kept)
            skipped = "; questions that were in play are not played again" * bool(
                done and recipe.trainer.async_questions
            )
            _say(f"run {run.folder} continues after step {done}; {left} leftover processes were stopped{skipped}")
        else:
            recipe, done = resolve_ports(recipe), 0
            run.create()
            held.enter_context(run.held())
        recipe = with_answer_cache(with_precision(recipe), run.folder, [*train, *validation])
        generation = len(run.started_ids())
        write_tasks(recipe, run, train, validation, generation=generation)
        record_changes(run, changed, after_step=done)
        write_conditions(run, recipe)
        run.write_recipe(recipe)
        write_whole(run.data, prepared.record.model_dump_json(indent=1))
        for difference in prepared.record.mismatch:
            _say(f"the RAG cache was made with other inputs, and this run allows it: {difference}")
        settings = trainer_settings(recipe, run, validation_size=len(validation), generation=generation, done=done)
        write_whole(run.trainer, settings.model_dump_json(indent=1))
        _say(
            f"run {run.folder}: {recipe.trainer.steps} steps, {len(train)} training tasks, "
            f"{len(validation)} validation tasks"
        )
        start_up: dict[str, float] = {}
        if done < recipe.trainer.steps:
            try:
                start_up = _play(recipe, run, generation=generation, done=done)
            except RunStopped as stop:
                _say(f"the guard stopped the run after step {stop.report.step}: {stop.report.reason}")
            except Interrupted as interrupted:
                _say(
                    f"stopped by {interrupted}; nothing is left running, logs are in {run.logs}; "
                    f"continue with --resume {run.folder.name}"
                )
                return interrupted.code
        _finish(recipe, run, validation, started=started, start_up=start_up)
    return 0


def _finish_stopped(recipe: Recipe, run: Run, stop: GuardReport) -> int:
    """Finish a run that the guard stopped and that was killed before its summary was written. Trains nothing."""
    started = time.monotonic()
    with run.held():
        end_leftovers(run)
        _say(f"the guard stopped the run {run.folder} after step {stop.step}: {stop.reason}; it is only finished now")
        _finish(recipe, run, load_tasks(run.validation), started=started, start_up={})
        _say(f"to train on from the policy that is kept: --resume {run.folder.name} again")
    return 0


def _finish(
    recipe: Recipe, run: Run, validation: Sequence[Task], *, started: float, start_up: dict[str, float]
) -> None:
    """Export the policy that the run keeps, and write the summary. A run that the guard stopped goes back first."""
    found = read_report(run)
    stop = found if found is not None and found.stopped else None
    if stop is not None:
        go_back_to_best(run, stop.best_step)
        _say(f"the policy of step {stop.best_step} is kept; it validated best ({stop.best_validation:.3f})")
    exported = replace_policy(run) if stop is None or stop.best_step else keep_start(run)
    cut_torn_line(run.metrics)  # the trainer of a stopped run may have ended while it wrote
    summary = summarize(
        records=read_records(run.episodes),
        metrics=read_jsonl(run.metrics),
        validation=validation,
        steps=recipe.trainer.steps,
        guard=found,
        rollouts_per_step=recipe.trainer.rollouts_per_step,
        wall_seconds=time.monotonic() - started,
        start_up_seconds=start_up,
        versions=versions(recipe),
        changes=changes_of(run),
    )
    _close(run, summary, exported)


def _play(recipe: Recipe, run: Run, *, generation: int, done: int) -> dict[str, float]:
    """Run all processes until the trainer is done; returns the seconds that each needed to become ready."""
    key = recipe.gateway.key or secrets.token_urlsafe(24)
    parts = [*service_parts(recipe, run), *training_parts(recipe, run, key=key, generation=generation)]
    run_id = f"{run.folder.name}-{secrets.token_hex(4)}"
    run.start_generation(run_id)
    sockets: dict[tuple[str, int], dict] = {}
    with Stack(parts, run_id=run_id) as stack:
        progress = Progress(console, stack, steps=recipe.trainer.steps, metrics=run.metrics, episodes=run.episodes)
        looked = 0.0

        bound = CheckpointBound(run, keep=recipe.trainer.checkpoints_kept)
        kept = KeptBest(run, recipe.trainer.guard, after=done)

        def tick() -> None:
            nonlocal looked
            progress()
            kept.look()
            bound.enforce()
            if time.monotonic() - looked > 10.0:
                looked = time.monotonic()
                sockets.update({(row["address"], row["port"]): row for row in listening(stack.run_id)})
                write_whole(run.sockets, json.dumps([*sockets.values()], indent=1))

        try:
            stack.run("trainer", tick=tick)
            kept.look()  # the trainer may have ended its last step after the last tick
            kept.settle()
            bound.enforce()
        finally:
            progress.close()
        return stack.start_up_s


def _say(line: str) -> None:
    console.print(printable(line), highlight=False, markup=False, soft_wrap=True)


def _close(run: Run, summary: Summary, exported: Exported) -> None:
    write_whole(run.summary, summary.model_dump_json(indent=1))
    console.print(closing_table(summary))
    for change in summary.changes:
        _say(f"changed when the run was resumed, {change}")
    for row in json.loads(run.sockets.read_text(encoding="utf-8")) if run.sockets.exists() else []:
        if not row["loopback"]:
            _say(f"listened beyond 127.0.0.1: {row['part']} ({row['process']}) on {row['address']}:{row['port']}")
    if exported.note:
        _say(exported.note)
    _say(f"summary: {run.summary}; trained policy: {run.policy}")
