"""Plays one question and shows the episode in a readable form: the quickest way to see what a trained policy does.

Called by `s3-agent ask`. It starts the services that do not run yet, and stops them after the question.
"""

import asyncio
from pathlib import Path

from rich.console import Console

from s3_agent.clients.connections import async_client
from s3_agent.clients.http import bearer
from s3_agent.errors import ConfigError
from s3_agent.evaluation.contestants import Contestant
from s3_agent.evaluation.players import contestant_of, trained_policy
from s3_agent.evaluation.services import policy_client, require_enough_passages, require_tokenizers, serving
from s3_agent.evaluation.views.episode import episode_view
from s3_agent.processes.requirements import require_vllm
from s3_agent.processes.services import clients_of
from s3_agent.recipe import Recipe
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


async def _play(recipe: Recipe, player: Contestant, url: str, task: Task, *, key: str | None) -> Outcome:
    async with async_client(timeout=300.0) as http, async_client(timeout=300.0, headers=bearer(key)) as own:
        services = clients_of(recipe, http)
        return await run_task(
            task,
            player.settings,
            policy=policy_client(player, url, http=own if player.policy and player.policy.url else http, recipe=recipe),
            retriever=services.retriever,
            generator=services.generator,
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
    label = agent or recipe.agent.name
    name = label.partition(":")[0]
    settings, trained, asked = recipe.playing(name), None, recipe.policy_of(name)
    if settings.method.policy == "protocol":
        if asked.mode == "chat" and policy_url is None:
            raise ConfigError("policy.mode=chat needs a running policy", remedy="give --policy-url http://…/v1")
        if run is not None or policy_url is None:
            _, trained = trained_policy(run or newest_run(recipe.runs))
            # At an address that does not say where its tokenizer is, the one of this run is used.
            own = asked.model_copy(update={"model": trained.model})
            recipe = recipe.model_copy(update={"policies": {**recipe.policies, name: own}})
    player = contestant_of(
        recipe,
        label,
        settings,
        address=policy_url,
        trained=trained,
        sampling="greedy",
        generator={},
        key=policy_key,
        model=policy_name,
    )
    require_enough_passages(recipe, [player])
    require_tokenizers(recipe, [player])
    task = Task(id="ask", question=question, golden_answers=(UNKNOWN,))
    with serving(recipe, [player], say=console.print) as (served, urls, stack):
        outcome = asyncio.run(stack.while_alive(_play(served, player, urls[label], task, key=policy_key)))
    if as_json:
        shown = {"question": question, "answer": outcome.answer, "episode": outcome.episode.model_dump(mode="json")}
        Console().print_json(data=shown, ensure_ascii=True)  # control characters appear only as escapes
    else:
        Console().print(episode_view(question, outcome.episode, outcome.answer))
    return 0
