"""The stages that call services: passages for every question, naive RAG's answers, and the task sets made from both.

Used by `stages`. A stage that needs a service starts it at a free port and stops it afterwards; a service with a `url`
is used instead.
"""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from s3_agent.clients.connections import async_client
from s3_agent.clients.prompts import AnswerPrompt
from s3_agent.data.files.stages import Ledger, Stage
from s3_agent.data.files.whole import Report
from s3_agent.data.naive_rag.answers import complete_cache
from s3_agent.data.naive_rag.cache import RagCache
from s3_agent.data.naive_rag.fingerprint import Fingerprint
from s3_agent.data.naive_rag.passages import Retrieved, retrieve_all
from s3_agent.data.tasks import load_tasks
from s3_agent.data.training_set import write_task_sets
from s3_agent.data_identity import index_identity, rag_fingerprint, retriever_text
from s3_agent.processes.services import SERVICES, clients_of, running_services
from s3_agent.recipe import Recipe
from s3_agent.types import Task

AT_A_TIME = 8


@contextmanager
def services(recipe: Recipe, *names: str) -> Iterator[Recipe]:
    """Yields the recipe while only these services run, ours at free ports; no other is needed. Raises LaunchError."""
    free = {name: getattr(recipe, name).model_copy(update={"port": 0}) for name in SERVICES}
    with running_services(recipe.model_copy(update=free), names) as (served, _):
        yield served


class AnswerStages:
    """`retrieve`, `rag-cache` and `tasks` of one recipe, over its task files by name.

    `fresh` answers every question again; the generator gets `concurrency` questions at a time.
    """

    def __init__(
        self, recipe: Recipe, ledger: Ledger, files: Mapping[str, Path], *, concurrency: int, fresh: bool
    ) -> None:
        self.recipe = recipe
        self.data = recipe.data
        self.ledger = ledger
        self._files = files
        self._concurrency = concurrency
        self._fresh = fresh
        self.folder = ledger.folder
        self.retrieved = ledger.folder / "retrieved.jsonl"

    def _questions_hash(self) -> dict[str, str]:
        return {name: self.ledger.hash(path) for name, path in self._files.items()}

    def _tasks(self, *names: str) -> list[Task]:
        """Each task once, because the validation sample is also part of the test sets."""
        found = {task.id: task for name, path in self._files.items() if name in names for task in load_tasks(path)}
        return [*found.values()]

    def _before(self, *stages: str) -> list[Path]:
        """The manifests that are missing among those of these stages, which must be finished first."""
        return [self.ledger.path(stage) for stage in stages if self.ledger.read(stage) is None]

    def retrieve(self) -> Stage:
        """The stage `retrieve`: the top passages of every question."""

        def made_of() -> dict[str, Any]:
            index = index_identity(self.recipe)
            return {
                "corpus": index["corpus"],
                "retriever": retriever_text(index),
                "topk": self.data.retrieved_topk,
                "questions": self._questions_hash(),
            }

        async def ask(recipe: Recipe, report: Report) -> dict[str, Any]:
            inputs = made_of()  # recorded before the questions are read, because they may change at any time
            tasks = self._tasks("train", "validation", "test")
            async with async_client(timeout=300.0) as http:
                await retrieve_all(
                    tasks,
                    retriever=clients_of(recipe, http).retriever,
                    topk=self.data.retrieved_topk,
                    path=self.retrieved,
                    made_of=inputs,
                    concurrency=AT_A_TIME,
                    done=lambda done, total: report("retrieving", done, total),
                )
            return {"questions": len(tasks), "topk": self.data.retrieved_topk}

        def work(report: Report) -> dict[str, Any]:
            report("starting the retriever", 0, 0)
            with services(self.recipe, "retriever") as recipe:
                return asyncio.run(ask(recipe, report))

        return Stage(
            name="retrieve",
            made_of=made_of,
            outputs=lambda: {"retrieved.jsonl": self.retrieved},
            work=work,
            missing=lambda: self._before("corpus", "index", "questions"),
        )

    def all(self) -> list[Stage]:
        """The three stages, in order, for a recipe that has a RAG cache."""
        return [self.retrieve(), self.rag_cache(), self.tasks()]

    @property
    def _cache(self) -> Path:
        assert self.data.rag_cache is not None, "a recipe without a RAG cache has none of these stages"
        return self.data.rag_cache

    def rag_cache(self) -> Stage:
        """The stage `rag-cache`: naive RAG's answers to the training and validation questions."""

        def made_of() -> dict[str, Any]:
            questions = {name: digest for name, digest in self._questions_hash().items() if name != "test"}
            return {
                "fingerprint": rag_fingerprint(self.recipe).model_dump(),
                "questions": questions,
                "retrieved": self.ledger.hash(self.retrieved),
            }

        async def ask(recipe: Recipe, fingerprint: Fingerprint, tasks: list[Task], report: Report) -> RagCache:
            async with async_client(timeout=300.0) as http:
                clients = clients_of(recipe, http, prompt=AnswerPrompt(layout=self.data.rag_layout))
                return await complete_cache(
                    tasks,
                    self._cache,
                    fingerprint,
                    retriever=Retrieved(self.retrieved, topk=fingerprint.topk),
                    generator=clients.generator,
                    judge=clients.judge,
                    concurrency=self._concurrency,
                    done=lambda done, total: report("naive RAG", done, total),
                    fresh=self._fresh,
                )

        def work(report: Report) -> dict[str, Any]:
            tasks, fingerprint = self._tasks("train", "validation"), rag_fingerprint(self.recipe)
            cache = RagCache.there(self._cache, fingerprint)
            if self._fresh or cache is None or cache.missing(tasks):
                report("starting the generator", 0, 0)
                with services(self.recipe, "generator") as recipe:
                    cache = asyncio.run(ask(recipe, fingerprint, tasks, report))
            right = sum(cache.answers[task.id].score for task in tasks)
            return {
                "questions": len(tasks),
                "naive_rag_accuracy": round(right / len(tasks), 4),
                "fingerprint": fingerprint.digest,
            }

        return Stage(
            name="rag-cache",
            made_of=made_of,
            outputs=lambda: {"rag_cache.json": self._cache},
            work=work,
            missing=lambda: self._before("retrieve"),
        )

    def tasks(self) -> Stage:
        """The stage `tasks`: the filtered training set and the test sets, with scores and first passages, also as rows
        in the published format."""
        folder = self.folder / "tasks"

        def made_of() -> dict[str, Any]:
            return {
                "questions": self._questions_hash(),
                "retrieved": self.ledger.hash(self.retrieved),
                "rag_cache": self.ledger.hash(self._cache),
                "topk": self.data.rag_topk,
            }

        def work(report: Report) -> dict[str, Any]:
            report("writing task sets", 0, 0)
            cache = RagCache.load(self._cache, expected=rag_fingerprint(self.recipe))
            return write_task_sets(folder, self._files, cache=cache, retrieved=self.retrieved, topk=self.data.rag_topk)

        def outputs() -> dict[str, Path]:
            names = [f"{name}{suffix}" for name in self._files for suffix in (".jsonl", ".parquet")]
            return {f"tasks/{name}": folder / name for name in names}

        return Stage(
            name="tasks",
            made_of=made_of,
            outputs=outputs,
            work=work,
            missing=lambda: self._before("rag-cache"),
        )
