"""Measures the generator's start and its answers, with the vLLM installed here and with another environment's.

Each start uses a separate `Stack`, in turn; CPU seconds count all processes of the service until it answers. The
installed release is forked from a process that has already loaded its modules, and that a training also uses for its
policy server and trainer: `preloaded` is that process. Then naive RAG answers the embedded validation questions, 24 at
a time, and the answers are compared with the shipped RAG cache.

    .venv/bin/python benchmarks/generator_start.py --python PATH [--rounds 3]
"""

import argparse
import asyncio
import json
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from s3_agent.agl.cpu.precision import processor_name
from s3_agent.clients.connections import async_client
from s3_agent.clients.generator import make_generator
from s3_agent.clients.prompts import AnswerPrompt
from s3_agent.clients.retriever import HttpRetriever
from s3_agent.data.naive_rag.answers import naive_rag
from s3_agent.data.naive_rag.cache import RagAnswer, RagCache
from s3_agent.data.tasks import load_tasks
from s3_agent.preparation.answer_stages import services
from s3_agent.processes.parts import service_parts
from s3_agent.processes.run_folder import scratch_run
from s3_agent.processes.services import resolve_ports
from s3_agent.processes.serving import served_packages, with_precision
from s3_agent.processes.stack import PART, PRELOADED, Stack, own_processes
from s3_agent.recipe import Recipe, load_recipe
from s3_agent.types import Passage, Task


class Known:
    """A retriever that already holds the passages of every question."""

    def __init__(self, passages: dict[str, tuple[Passage, ...]]) -> None:
        self._passages = passages

    async def retrieve(self, query: str, *, topk: int) -> tuple[Passage, ...]:
        return self._passages[query][:topk]

    async def retrieve_batch(self, queries: Sequence[str], *, topk: int) -> list[tuple[Passage, ...]]:
        return [await self.retrieve(query, topk=topk) for query in queries]


class Remembering(HttpRetriever):
    """A retriever that records its results."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.kept: dict[str, tuple[Passage, ...]] = {}

    async def retrieve(self, query: str, *, topk: int) -> tuple[Passage, ...]:
        self.kept[query] = await super().retrieve(query, topk=topk)
        return self.kept[query]


class NoGenerator:
    """A generator without answers, so that only passages are retrieved."""

    async def fit(self, question: str, passages: Sequence[Passage], *, prompt: AnswerPrompt | None = None) -> Any:
        return tuple(passages)

    async def answer(self, question: str, passages: Sequence[Passage], *, prompt: AnswerPrompt | None = None) -> str:
        return ""


def cpu_seconds(run_id: str) -> dict[str, float]:
    """CPU seconds so far of a stack's processes and of their finished children, by service."""
    used: dict[str, float] = {}
    found = own_processes(run_id)
    ours = {process.pid for process in found}
    for process in found:
        try:
            part, times = process.environ()[PART], process.cpu_times()
            if part == PRELOADED and process.ppid() in ours:  # it shows its parent's environment
                part = "generator"
        except psutil.Error:
            continue
        used[part] = used.get(part, 0.0) + times.user + times.system + times.children_user + times.children_system
    return used


async def passages(recipe: Recipe, tasks: Sequence[Task]) -> Known:
    async with async_client(timeout=300.0) as http:
        asked = Remembering(http, recipe.retriever_url)
        await naive_rag(
            tasks, retriever=asked, generator=NoGenerator(), topk=recipe.data.rag_topk, concurrency=8, keep=_nothing
        )
    return Known(asked.kept)


def _nothing(name: str, answer: RagAnswer) -> None:
    pass


async def ask(recipe: Recipe, tasks: Sequence[Task], known: Known) -> dict[str, RagAnswer]:
    got: dict[str, RagAnswer] = {}
    prompt = AnswerPrompt(layout=recipe.data.rag_layout)
    async with async_client(timeout=300.0) as http:
        generator = make_generator(http, recipe.generator_url, recipe.generator.client, prompt=prompt)
        await naive_rag(
            tasks,
            retriever=known,
            generator=generator,
            topk=recipe.data.rag_topk,
            concurrency=recipe.workers.concurrency,
            keep=got.__setitem__,
        )
    return got


def measure(recipe: Recipe, tasks: Sequence[Task], known: Known, shipped: RagCache) -> dict[str, Any]:
    """One start and the answers to all tasks."""
    recipe = resolve_ports(recipe)
    run_id = secrets.token_hex(8)
    with scratch_run(recipe) as run:
        parts = [part for part in service_parts(recipe, run) if part.name == "generator"]
        started = time.monotonic()
        with Stack(parts, run_id=run_id) as stack:
            stack.run()
            ready, used = time.monotonic() - started, cpu_seconds(run_id)
            started = time.monotonic()
            got = asyncio.run(ask(recipe, tasks, known))
            answered, after = time.monotonic() - started, cpu_seconds(run_id)
    return {
        "ready_s": round(ready, 1),
        "cpu_s": {name: round(value, 1) for name, value in used.items()},
        "answers_s": round(answered, 1),
        "answers_cpu_s": round(sum(after.values()) - sum(used.values()), 1),
        "answers_as_shipped": sum(shipped.answers[name].answer == one.answer for name, one in got.items()),
        "of": len(got),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, required=True, help="Another environment's interpreter.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--questions", type=int, help="Number of validation questions; default: all.")
    parser.add_argument("overrides", nargs="*", help="Of the recipe `cpu`.")
    options = parser.parse_args()
    base = load_recipe("cpu", ["generator.port=0", "gateway.port=0", "retriever.port=0", *options.overrides])
    assert base.data.rag_cache is not None
    shipped = RagCache.model_validate_json(base.data.rag_cache.read_text(encoding="utf-8"))
    tasks = load_tasks(base.data.validation)[: options.questions]
    with services(base, "retriever") as recipe:
        known = asyncio.run(passages(recipe, tasks))
    ours = with_precision(base)
    other = ours.model_copy(update={"generator": ours.generator.model_copy(update={"python": options.python})})
    rows: dict[str, list[dict[str, Any]]] = {"installed": [], "other": []}
    for _ in range(options.rounds):
        for name, recipe in (("installed", ours), ("other", other)):
            rows[name].append(measure(recipe, tasks, known, shipped))
            print(json.dumps({name: rows[name][-1]}), flush=True)
    generator = {name: median(row["cpu_s"].get("generator", 0.0) for row in found) for name, found in rows.items()}
    together = {name: median(sum(row["cpu_s"].values()) for row in found) for name, found in rows.items()}
    result = {
        "processor": processor_name(),
        "dtype": ours.generator.dtype,
        "packages": {name: served_packages(recipe) for name, recipe in (("installed", ours), ("other", other))},
        "ready_s": {name: median(row["ready_s"] for row in found) for name, found in rows.items()},
        "cpu_s": together,
        "cpu_s_of_the_generator_alone": generator,
        "answers_s": {name: median(row["answers_s"] for row in found) for name, found in rows.items()},
        "cpu_over_installed": round(together["other"] / together["installed"], 2),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
