"""Keeps the passages that each question retrieves by itself, for naive RAG, first prompts and export.

Twelve are kept, as in s3's pipeline; naive RAG reads the first three of them.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from s3_agent.clients.retriever import QUERY_REFUSED, HttpRetriever
from s3_agent.data.files.checkpoint import Checkpoint
from s3_agent.data.files.whole import write_rows
from s3_agent.data.tasks import iterate_jsonl
from s3_agent.errors import DataError, RetrieverError
from s3_agent.questions import retrieval_query
from s3_agent.types import Passage, Task

BATCH = 64


async def retrieve_all(
    tasks: Sequence[Task],
    *,
    retriever: HttpRetriever,
    topk: int,
    path: Path,
    made_of: dict[str, Any],
    concurrency: int,
    done: Callable[[int, int], None],
) -> None:
    """Write the passages of every task to `path`, in the order of the tasks.

    A question that the server refuses has none, unless it refuses every question. After a kill, the next call
    continues. Raises RetrieverError, and keeps the passages so far.
    """
    with Checkpoint(path, made_of=made_of) as checkpoint:
        waiting = [task for task in tasks if task.id not in checkpoint.ids]
        batches = [waiting[start : start + BATCH] for start in range(0, len(waiting), BATCH)]
        slots = asyncio.Semaphore(concurrency)
        refused: list[tuple[Task, RetrieverError]] = []

        def keep(found: Iterable[tuple[Task, tuple[Passage, ...]]]) -> None:
            for task, passages in found:
                rows = [passage.model_dump() for passage in passages]
                marked = {"protected": task.protected} if task.protected else {}
                checkpoint.add(task.id, {"question": task.question, "passages": rows, **marked})
            done(len(checkpoint), len(tasks))

        async def search(batch: Sequence[Task]) -> None:
            try:
                found = await retriever.retrieve_batch([retrieval_query(task.question) for task in batch], topk=topk)
            except RetrieverError as error:
                if error.status not in QUERY_REFUSED:
                    raise
                if len(batch) == 1:
                    refused.append((batch[0], error))
                    if len(refused) > BATCH and not len(checkpoint):
                        raise
                else:  # one of them may be at fault
                    half = len(batch) // 2
                    await search(batch[:half])
                    await search(batch[half:])
            else:
                keep(zip(batch, found, strict=True))

        async def ask(batch: Sequence[Task]) -> None:
            async with slots:
                await search(batch)

        try:
            async with asyncio.TaskGroup() as group:
                for batch in batches:
                    group.create_task(ask(batch))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed
        if refused:
            if not len(checkpoint):
                raise refused[0][1]
            keep((task, ()) for task, _ in refused)
        write_rows(path, checkpoint.rows(task.id for task in tasks))
        checkpoint.remove()


class Retrieved:
    """A retriever over the file of `retrieve_all`: it knows only the questions in that file, and searches nothing."""

    def __init__(self, path: Path, *, topk: int) -> None:
        self._path = path
        self._found = {
            retrieval_query(row["question"]): tuple(Passage.model_validate(each) for each in row["passages"][:topk])
            for row in iterate_jsonl(path)
        }

    def first(self, query: str) -> tuple[Passage, ...]:
        """The first passages of a question in the file. Raises DataError for any other question."""
        if query not in self._found:
            raise DataError(f"{self._path} lacks the passages of a question", remedy="run the stage retrieve again")
        return self._found[query]

    async def retrieve(self, query: str, *, topk: int) -> tuple[Passage, ...]:
        """As a retriever."""
        return self.first(query)[:topk]
