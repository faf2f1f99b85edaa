"""Plays one question and shows the episode in a readable form: the quickest way to see what a trained policy does.

Called by `s3-agent ask`. It starts the services that do not run yet, and stops them after the question.
"""

import asyncio
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from s3_agent.clients.connections import async_client
from s3_agent.clients.generator import make_generator
from s3_agent.clients.http import bearer, call_json
from s3_agent.clients.make import make_policy
from s3_agent.clients.policy import NoPolicy
from s3_agent.clients.retriever import HttpRetriever
from s3_agent.clients.tokenizer import policy_tokenizer
from s3_agent.errors import ConfigError, PolicyError
from s3_agent.evaluation.players import require_servers_template
from s3_agent.evaluation.views.episode import episode_view
from s3_agent.processes.ports import reserve_port
from s3_agent.processes.requirements import require_vllm
from s3_agent.processes.run_folder import Run
from s3_agent.processes.services import policy_part, running_services
from s3_agent.processes.stack import Part
from s3_agent.recipe import HOST, Recipe
from s3_agent.rollout.runner import Outcome, run_task
from s3_agent.types import Task

console = Console(stderr=True)
UNKNOWN = "(unknown)"


def newest_run(runs: Path) -> Path:
    """The newest run that has a trained policy. Raises ConfigError when there is none."""
    finished = sorted(runs.glob("*/policy/config.json"), key=lambda path: path.stat().st_mtime)
    if not finished:
        require_vllm("asking a policy that was trained here")
        raise ConfigError(f"no run in {runs} has a trained policy", remedy="train one: s3-agent train")
    return finished[-1].parents[1]


async def _served_name(http: httpx.AsyncClient, url: str) -> str:
    models = await call_json(http, "GET", url.rstrip("/") + "/models", error=PolicyError, patience_s=10.0)
    try:
        return models["data"][0]["id"]
    except (KeyError, IndexError, TypeError) as cause:
        raise PolicyError(f"{url}/models names no model: {str(models)[:200]}", remedy="give --policy-name") from cause


async def _play(
    recipe: Recipe, task: Task, policy_url: str | None, tokenizer: str, *, name: str | None, key: str | None
) -> Outcome:
    async with async_client(timeout=300.0) as http, async_client(timeout=300.0, headers=bearer(key)) as own:
        name = name or (policy_url and await _served_name(own, policy_url))
        if policy_url is None or name is None:
            policy = NoPolicy()
        else:
            asked = recipe.policy
            policy = make_policy(
                own,
                policy_url,
                mode=asked.mode,
                tokenizer=tokenizer,
                template=asked.template,
                request=asked.request,
                model=name,
                temperature=0.0,
                context_tokens=asked.context_tokens,
            )
        return await run_task(
            task,
            recipe.agent,
            policy=policy,
            retriever=HttpRetriever(http, recipe.retriever_url),
            generator=make_generator(http, recipe.generator_url, recipe.generator.client),
        )


def ask_job(
    recipe: Recipe,
    question: str,
    *,
    agent: str | None = None,
    run: Path | None = None,
    policy_url: str | None = None,
    policy_name: str | None = None,
    policy_key: str | None = None,
    as_json: bool = False,
) -> int:
    """Play one question with the policy of `run`, or the one at `policy_url`. Raises S3AgentError."""
    if not question.strip():
        raise ConfigError("the question is empty", remedy='ask something: s3-agent ask "…?"')
    if run is not None and not (run / "policy").is_dir():
        raise ConfigError(f"{run} has no trained policy", remedy="give the folder of a finished run")
    settings = recipe.playing(agent or recipe.agent.name)
    # The answer is only shown, and not compared with naive RAG.
    settings = settings.model_copy(update={"reward": "accuracy"}) if settings.asks_generator else settings
    recipe = recipe.model_copy(update={"agent": settings})
    kind = settings.method.policy
    at_generator = kind in ("instruct", "rewriter") and policy_url is None
    if kind != "protocol":
        changes: dict[str, Any] = {"mode": "chat"}
        if at_generator:
            changes |= {"request": {**recipe.generator.added, **recipe.policy.request}}
            changes |= {"context_tokens": recipe.generator.context_tokens}
            changes |= {"chat_template": None, "chat_template_kwargs": {}}
        recipe = recipe.model_copy(update={"policy": recipe.policy.model_copy(update=changes)})
    elif recipe.policy.mode == "chat" and policy_url is None:
        raise ConfigError("policy.mode=chat needs a running policy", remedy="give --policy-url http://…/v1")
    if at_generator and not recipe.generator.openai_compatible:
        raise ConfigError(
            f"{settings.name} is played by the generator's model, which is not behind an OpenAI-compatible address",
            remedy="give --policy-url http://…/v1",
        )
    if recipe.policy.mode == "chat" and policy_url is not None:
        require_servers_template(recipe.policy.template, policy_url)
    own_model = kind == "protocol" and not (policy_url and run is None)
    model = str((run or newest_run(recipe.runs)) / "policy") if own_model else recipe.policy.model
    if kind == "protocol" and recipe.policy.mode == "tokens":
        policy_tokenizer(model, recipe.policy.template)  # refuses an unusable policy before anything is started
    task = Task(id="ask", question=question, golden_answers=(UNKNOWN,))
    needed = ["generator"] * (settings.asks_generator or at_generator) + ["retriever"] * bool(settings.method.uses)
    port = reserve_port("policy", 0) if policy_url is None and kind == "protocol" else None

    def policy(_: Recipe, run: Run) -> list[Part]:
        return [] if port is None else [policy_part(Path(model), run, port=port)]

    with running_services(recipe, needed, more=policy, say=console.print) as (recipe, _):
        if at_generator:
            policy_url, policy_name = recipe.generator_url, recipe.generator.model
        elif port is not None:
            policy_url = f"http://{HOST}:{port}/v1"
        elif kind == "none":
            policy_url = None
        outcome = asyncio.run(_play(recipe, task, policy_url, model, name=policy_name, key=policy_key))
    if as_json:
        shown = {"question": question, "answer": outcome.answer, "episode": outcome.episode.model_dump(mode="json")}
        Console().print_json(data=shown, ensure_ascii=True)  # control characters appear only as escapes
    else:
        Console().print(episode_view(question, outcome.episode, outcome.answer))
    return 0
