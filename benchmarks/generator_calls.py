"""Counts the calls of the generator for a GRPO batch whose workers share the answer cache.

The services are real: the nano policy behind vLLM at temperature 1, the retrieval server, the frozen generator. It
plays `--questions` times `--siblings` episodes of the s3 agent, with two cache clients on one folder, like two worker
processes. The same batch without the cache needs one call per episode.

    .venv/bin/python benchmarks/generator_calls.py [--questions 16] [--siblings 8]
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import fmean

import httpx

from s3_agent.clients.generator import make_generator
from s3_agent.clients.policy import CompletionsPolicy
from s3_agent.clients.retriever import HttpRetriever
from s3_agent.clients.tokenizer import load_tokenizer
from s3_agent.data.tasks import load_tasks
from s3_agent.processes.ports import reserve_port
from s3_agent.processes.services import policy_part, running_services
from s3_agent.recipe import HOST, Recipe, load_recipe
from s3_agent.rollout.runner import Outcome, run_task
from s3_agent.types import Task


async def batch(recipe: Recipe, policy_url: str, tasks: list[Task], siblings: int, cache: Path | None) -> dict:
    """Play every task `siblings` times; return the number of answers needed and of calls made."""
    calls: Counter[str] = Counter()

    async def count(request: httpx.Request) -> None:
        calls[request.url.path.rpartition("/")[2]] += 1

    async with (
        httpx.AsyncClient(timeout=300.0) as http,
        httpx.AsyncClient(timeout=300.0, event_hooks={"request": [count]}) as counted,
    ):
        settings = recipe.generator.client.model_copy(update={"cache": cache})
        generators = [make_generator(counted, recipe.generator_url, settings) for _ in range(2)]
        policy = CompletionsPolicy(
            http,
            policy_url,
            load_tokenizer(recipe.policy.model),
            model="policy",
            temperature=recipe.trainer.temperature,
        )
        retriever = HttpRetriever(http, recipe.retriever_url)
        slots = asyncio.Semaphore(32)

        async def play(task: Task, number: int) -> Outcome:
            async with slots:
                generator = generators[number % 2]
                return await run_task(task, recipe.agent, policy=policy, retriever=retriever, generator=generator)

        started = time.monotonic()
        outcomes = await asyncio.gather(*(play(task, number) for task in tasks for number in range(siblings)))
        seconds = time.monotonic() - started
    groups = [outcomes[start : start + siblings] for start in range(0, len(outcomes), siblings)]
    distinct = [len({tuple(doc.id for doc in outcome.episode.selected) for outcome in group}) for group in groups]
    return {
        "answers_needed": len(outcomes),
        "calls_made": calls["completions"],
        "share": round(calls["completions"] / len(outcomes), 3),
        "distinct_selections_a_group": round(fmean(distinct), 2),
        "wall_s": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--siblings", type=int, default=8)
    options = parser.parse_args()
    recipe = load_recipe("cpu", ["retriever.port=0", "generator.port=0"])
    tasks = load_tasks(recipe.data.train)[: options.questions]
    port = reserve_port("policy", 0)
    with (
        running_services(recipe, more=lambda recipe, run: [policy_part(Path(recipe.policy.model), run, port=port)]) as (
            recipe,
            _,
        ),
        tempfile.TemporaryDirectory() as cache,
    ):
        url = f"http://{HOST}:{port}/v1"
        measured = {
            name: asyncio.run(batch(recipe, url, tasks, options.siblings, folder))
            for name, folder in (("without", None), ("cold", Path(cache)), ("warm", Path(cache)))
        }
    measured["siblings"] = options.siblings
    measured["cold_over_without"] = round(measured["cold"]["share"] / measured["without"]["share"], 3)
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
