"""The evaluation job of `s3-agent eval`: starts the services that unfinished questions need, and prints the table.

Results that earlier calls kept are read first, so a finished evaluation starts no service."""

import os
import random
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from s3_agent import event_loop
from s3_agent.clients.connections import async_client, get
from s3_agent.clients.http import bearer
from s3_agent.clients.prompts import answer_messages
from s3_agent.data.files.whole import keep_private, sha256_of, write_whole, written_whole
from s3_agent.data.tasks import load_tasks
from s3_agent.data_identity import index_identity
from s3_agent.errors import ConfigError
from s3_agent.evaluation.contestants import Contestant, SamplingName, with_samples
from s3_agent.evaluation.coverage import Coverage, kept_coverage
from s3_agent.evaluation.pipeline import Conditions, Pipeline
from s3_agent.evaluation.players import contestants_of
from s3_agent.evaluation.progress import EvaluationProgress
from s3_agent.evaluation.records import EvaluatedTask, EvaluationSetting, read_json
from s3_agent.evaluation.run import Unit, evaluate_all, read_kept, units_of
from s3_agent.evaluation.services import (
    policy_client,
    require_enough_passages,
    require_tokenizers,
    services_of,
    serving,
)
from s3_agent.evaluation.stages import key_of, only_one
from s3_agent.evaluation.table import EvaluationTable, Numbers, numbers_of, table_of
from s3_agent.evaluation.views.table import markdown, terminal_tables
from s3_agent.processes import commands
from s3_agent.processes.services import require_external, versions
from s3_agent.processes.serving import served_packages, with_precision
from s3_agent.processes.stack import Interrupted, Stack
from s3_agent.recipe import Recipe
from s3_agent.types import Passage, Task

DRAW_SEED = 42
console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """What to evaluate. `policies`: addresses, folders or hub names by agent; `data` None: the recipe's validation.

    `drawn` questions are drawn from the data with the seed `draw_seed` (None: all), and the first `limit` of them are
    asked. `concurrency` is the number of questions in progress at a time, `samples` how often each is played by agents
    whose policy is sampled.
    """

    agents: Sequence[str]
    data: Path | None = None
    drawn: int | None = None
    draw_seed: int = DRAW_SEED
    limit: int | None = None
    concurrency: int = 64
    policies: Mapping[str, str] = field(default_factory=dict)
    policy_key: str | None = None
    runs: Sequence[Path] = ()
    sampling: SamplingName = "published"
    samples: int = 1
    out: Path | None = None
    plain: bool = False


def _generator_identity(recipe: Recipe) -> dict[str, Any]:
    """What an answer depends on: the model, its token limits, and the context window of its server."""
    settings = recipe.generator
    identity: dict[str, Any] = settings.client.model_dump(
        mode="json", include={"kind", "model", "max_tokens", "context_tokens", "tokenizer"}
    )
    identity |= {"added": settings.added} if settings.added else {}
    if settings.hosted:
        elsewhere = {"packages": served_packages(recipe)} if settings.python is not None else {}
        return {**identity, "serve": commands.generator_options(recipe), **elsewhere}
    if settings.openai_compatible:
        response = get(f"{settings.url}/models", timeout=10.0)
        listed = response.json().get("data") if response.status_code == 200 else None
        for model in listed or []:
            if model.get("id") == settings.model:
                identity["server"] = {name: model.get(name) for name in ("root", "max_model_len")}
    return identity


def conditions_of(recipe: Recipe, generator: dict[str, Any]) -> Conditions:
    """The services that all agents share, with the generator's identity."""
    return Conditions(
        index=index_identity(recipe),
        generator=generator,
        generator_model=recipe.generator.model,
        judge=recipe.judge,
        seed=recipe.seed,
        prices=recipe.evaluation.prices,
    )


def _coverage(recipe: Recipe, conditions: Conditions, tasks: Sequence[Task], out: Path) -> Coverage:
    """Which gold documents the corpus has; unknown where the retriever does not search `data.corpus`."""
    if not any(task.evidence for task in tasks):
        return Coverage()
    corpus = recipe.data.corpus if recipe.serves_corpus else None
    out.mkdir(parents=True, exist_ok=True)
    return kept_coverage(out, tasks, corpus, identity=conditions.index)


def _prompt(recipe: Recipe) -> list[dict[str, str]]:
    probe = Passage(id="", title="{title}", text="{text}")
    return answer_messages("{question}", [probe], kind=recipe.generator.kind)


def _setting(
    recipe: Recipe, contestants: Sequence[Contestant], conditions: Conditions, data: dict[str, Any]
) -> EvaluationSetting:
    agents = {
        one.label: {
            "settings": one.settings.model_dump(mode="json"),
            "sampling": one.sampling and one.sampling.model_dump(),
            "policy": one.policy and one.policy.model_dump(mode="json"),
            "answers": one.settings.answers,
            "samples": one.sample + 1,  # of the last one with this label
        }
        for one in contestants
    }
    judge = recipe.judge.model_dump(mode="json", exclude={"cache", "cache_bytes", "patience_s"})
    return EvaluationSetting(
        agents=agents,
        services={
            "retriever": conditions.index,
            "generator": {**conditions.generator, "prompt": _prompt(recipe)},
            "judge": judge if recipe.judge.rule != "span" else {"rule": "span"},
            "prices": {model: price.model_dump() for model, price in conditions.prices.items()},
        },
        data=data,
        seed=conditions.seed,
        versions=versions(recipe),
        started_at=time.time(),
    )


def services_id(out: Path) -> str:
    """An id for the services that evaluations into `out` start; with it the next one finds what a `kill -9` left
    running.

    It is random and stored in `out`, readable only by its owner. The folder's place is part of it, so a copy has
    another id.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / ".services"
    with suppress(FileExistsError), open(path, "x", opener=_private) as file:
        file.write(secrets.token_hex(16))
    place = out.stat()
    known = [path.read_text(encoding="utf-8"), str(out.resolve()), place.st_dev, place.st_ino]
    return "evaluation-" + key_of(*known)[:16]


def _say(line: str) -> None:
    console.print(line, highlight=False)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, mode=0o600)


async def _ask(
    recipe: Recipe,
    urls: Mapping[str, str],
    stack: Stack,
    pipeline: Pipeline,
    units: Sequence[Unit],
    request: EvaluationRequest,
    *,
    done: Any,
) -> None:
    timeout = httpx.Timeout(600.0, connect=10.0)
    async with (
        async_client(timeout=timeout) as http,
        async_client(timeout=timeout, headers=bearer(request.policy_key)) as own,
    ):
        contestants = {unit.contestant.id: unit.contestant for unit in units}
        policies = {
            name: policy_client(
                one, urls[one.label], http=own if one.policy and one.policy.url else http, recipe=recipe
            )
            for name, one in contestants.items()
        }
        services = services_of(recipe, http, policies)
        work = evaluate_all(pipeline, units, services, concurrency=request.concurrency, done=done)
        await stack.while_alive(work)


def read_questions(path: Path, limit: int | None) -> tuple[str, list[Task]]:
    """The hash of a task file, and its first tasks. Raises ConfigError, also if the file changes while it is read."""
    before = sha256_of(path) if path.is_file() else ""
    tasks = load_tasks(path)[:limit]
    if sha256_of(path) != before:
        raise ConfigError(f"{path} changed while it was read", remedy="run the same command again")
    return before, tasks


def drawn_questions(tasks: Sequence[Task], count: int | None, *, seed: int) -> list[Task]:
    """`count` of the tasks (None: all), drawn with `seed`, in the order of the file."""
    if count is None or count >= len(tasks):
        return list(tasks)
    return [tasks[place] for place in sorted(random.Random(seed).sample(range(len(tasks)), count))]


def _announce(tasks: Sequence[Task], *, of: int, out: Path) -> None:
    """Say which questions are asked, and keep `out` private for those that may not be published."""
    if len(tasks) < of:
        console.print(f"{len(tasks)} of {of} questions", highlight=False)
    if any(task.protected for task in tasks):
        keep_private(out)
        console.print(
            f"the questions may not be published in plain text: only you can read {out}; reports withhold their texts, "
            "and exports encrypt them",
            highlight=False,
        )


def evaluate_job(recipe: Recipe, request: EvaluationRequest) -> int:
    """Evaluate and print the table; return 0 if every question of every agent has a result. Raises S3AgentError."""
    require_external(recipe)
    recipe = with_precision(recipe)
    path = request.data or recipe.data.validation
    digest, all_tasks = read_questions(path, None)
    tasks = drawn_questions(all_tasks, request.drawn, seed=request.draw_seed)[: request.limit]
    generator = _generator_identity(recipe)
    contestants = contestants_of(
        recipe,
        request.agents,
        given=request.policies,
        runs=request.runs,
        sampling=request.sampling,
        generator=generator,
        key=request.policy_key,
    )
    require_enough_passages(recipe, contestants)
    contestants = with_samples(contestants, request.samples)
    out = request.out or recipe.runs / f"evaluation-{recipe.name}"
    _announce(tasks, of=len(all_tasks), out=out)
    conditions = conditions_of(recipe, generator)
    conditions = replace(conditions, coverage=_coverage(recipe, conditions, tasks, out))
    data = {
        "path": str(path),
        "sha256": digest,
        "questions": len(tasks),
        "limit": request.limit,
        "drawn": request.drawn,
        "draw_seed": request.draw_seed,
        "of": len(all_tasks),
        "evidence": conditions.coverage.report(),
    }
    with only_one(out), closing(Pipeline(out, conditions)) as pipeline:
        key = pipeline.key(contestants, tasks)
        kept = read_json(out / "table.json")
        if kept.get("key") == key:
            table = EvaluationTable.model_validate(kept)
        else:
            setting = _setting(recipe, contestants, conditions, data)
            write_whole(out / "evaluation.json", setting.model_dump_json(indent=1))
            try:
                table = _evaluate(recipe, request, pipeline, contestants, tasks, out, key)
            except Interrupted as interrupted:
                console.print(
                    f"stopped by {interrupted}; {out} keeps what is finished, the same command continues from there",
                    highlight=False,
                )
                return interrupted.code
    Console().print(terminal_tables(table))
    missing = sum(sum(agent.failed.values()) for agent in table.agents)
    console.print(f"results: {out}/results.jsonl, table.json, table.md", highlight=False)
    if missing:
        console.print(
            f"{missing} results are missing, not in the numbers above; the same command tries them again", style="red"
        )
    return int(bool(missing))


def _evaluate(
    recipe: Recipe,
    request: EvaluationRequest,
    pipeline: Pipeline,
    contestants: Sequence[Contestant],
    tasks: Sequence[Task],
    out: Path,
    key: str,
) -> EvaluationTable:
    units = units_of(contestants, tasks)
    numbers: list[Numbers] = []
    played = Counter(unit.contestant.label for unit in units)
    progress = EvaluationProgress(console, played, plain=request.plain)
    try:
        with written_whole(out / "results.jsonl") as write:

            def done(result: EvaluatedTask) -> None:
                write(result.model_dump_json().encode() + b"\n")
                numbers.append(numbers_of(result))
                progress(result)

            async def kept() -> list[Unit]:
                async with async_client(timeout=5.0) as http:
                    return await read_kept(pipeline, units, services_of(recipe, http, {}), done=done)

            left = event_loop.run(kept())
            if left:
                playing = [unit.contestant for unit in left]
                require_tokenizers(recipe, playing)
                with serving(recipe, playing, say=_say, run_id=services_id(out)) as (served, urls, stack):
                    progress.resumed()
                    event_loop.run(_ask(served, urls, stack, pipeline, left, request, done=done))
    finally:
        progress.close()
    known = pipeline.conditions.coverage
    coverage = known.report() if known.questions else None
    table = table_of(numbers, [one.label for one in contestants], coverage=coverage)
    complete = not any(agent.failed for agent in table.agents)
    # Only a complete table is printed again unchanged; otherwise the failed questions are tried again.
    write_whole(out / "table.json", table.model_copy(update={"key": key if complete else ""}).model_dump_json(indent=1))
    write_whole(out / "table.md", markdown(table))
    return table
