"""Builds the naive-RAG cache of a recipe: retriever and generator up, every task answered once, all or nothing."""

import asyncio
import secrets

import httpx
from rich.console import Console
from rich.progress import Progress

from s3_agent.clients.generator import make_generator
from s3_agent.clients.judge import make_judge
from s3_agent.clients.retriever import HttpRetriever
from s3_agent.data.rag_cache import RagAnswer, RagCache, naive_rag
from s3_agent.data.tasks import load_tasks
from s3_agent.errors import ConfigError
from s3_agent.launch.commands import generator_url, retriever_url
from s3_agent.launch.job import require_external, resolve_ports
from s3_agent.launch.parts import service_parts
from s3_agent.launch.run import scratch_run
from s3_agent.launch.stack import Stack
from s3_agent.launch.tasks import rag_fingerprint
from s3_agent.recipe import Recipe

console = Console(stderr=True)


async def _answers(recipe: Recipe, *, concurrency: int) -> dict[str, RagAnswer]:
    tasks = [*load_tasks(recipe.data.train), *load_tasks(recipe.data.validation)]
    async with httpx.AsyncClient(timeout=300.0) as http:
        with Progress(console=console) as progress:
            bar = progress.add_task("naive RAG", total=len(tasks))
            return await naive_rag(
                tasks,
                retriever=HttpRetriever(http, retriever_url(recipe)),
                generator=make_generator(
                    http, generator_url(recipe), recipe.generator.client, layout=recipe.data.rag_layout
                ),
                judge=make_judge(http, generator_url(recipe), recipe.judge),
                topk=recipe.data.rag_topk,
                concurrency=concurrency,
                done=lambda count: progress.advance(bar, count),
            )


def build_rag_cache(recipe: Recipe, *, concurrency: int) -> int:
    """Write `data.rag_cache`; the old one stays until the new one is whole. Raises S3AgentError."""
    path = recipe.data.rag_cache
    if path is None:
        raise ConfigError("the recipe names no RAG cache", remedy="set data.rag_cache=…")
    require_external(recipe)
    recipe = resolve_ports(recipe)
    with scratch_run(recipe) as run, Stack(service_parts(recipe, run), run_id=secrets.token_hex(8)) as stack:
        with console.status("starting the retriever and the generator"):
            stack.run()
        answers = asyncio.run(_answers(recipe, concurrency=concurrency))
    cache = RagCache(fingerprint=rag_fingerprint(recipe), answers=answers)
    cache.save(path)
    share = sum(answer.score for answer in answers.values()) / len(answers)
    console.print(f"{len(answers)} tasks, naive RAG answers {share:.3f} of them: {path}", highlight=False)
    return 0
