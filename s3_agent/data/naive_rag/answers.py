"""Naive RAG over all tasks of a recipe: each answered and scored once, kept as it comes, whatever ends the job."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from s3_agent.clients.generator import Generator, answer_cut
from s3_agent.clients.judge import Judge
from s3_agent.clients.retriever import Retriever
from s3_agent.data.files.checkpoint import Checkpoint
from s3_agent.data.naive_rag.cache import RagAnswer, RagCache
from s3_agent.data.naive_rag.fingerprint import Fingerprint
from s3_agent.questions import normalize_question, retrieval_query
from s3_agent.rewards.accuracy import check_answer
from s3_agent.types import Task

log = structlog.get_logger()


async def naive_rag(
    tasks: Sequence[Task],
    *,
    retriever: Retriever,
    generator: Generator,
    topk: int,
    concurrency: int,
    keep: Callable[[str, RagAnswer], None],
    judge: Judge | None = None,
) -> None:
    """Answer every task from the top passages of its own question; each answer is handed to `keep` as it comes.

    Raises the first RetrieverError, GeneratorError or JudgeError and gives up the rest. Answers that ended at the
    generator's token limit are scored as they are, and counted in the log.
    """
    waiting = iter(tasks)
    cut = 0

    async def work() -> None:
        nonlocal cut
        for task in waiting:
            passages = await retriever.retrieve(retrieval_query(task.question), topk=topk)
            shown = await generator.fit(task.question, passages)
            answer_cut.set(False)
            text = await generator.answer(task.question, shown)
            cut += answer_cut.get()
            accuracy = await check_answer(task, text, judge=judge)
            answer = RagAnswer(
                question=normalize_question(task.question),
                answer=text,
                score=int(accuracy.value),
                em_score=int(accuracy.metrics["exact_match"]),
                data_source=task.data_source,
                golden_answers=task.golden_answers,
            )
            keep(task.id, answer)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed
    if cut:
        log.warning("answers ended at the token limit", answers=cut, of=len(tasks), remedy="raise generator.max_tokens")


async def complete_cache(
    tasks: Sequence[Task],
    path: Path,
    fingerprint: Fingerprint,
    *,
    retriever: Retriever,
    generator: Generator,
    concurrency: int,
    done: Callable[[int, int], None],
    judge: Judge | None = None,
    fresh: bool = False,
) -> RagCache:
    """The cache of these tasks at `path`; only what is missing there is asked for.

    What a call that was killed has under the same fingerprint is kept, and so is the file's, unless `fresh`. Raises
    what `naive_rag` raises, and keeps the answers that came before.
    """
    with Checkpoint(path, made_of=fingerprint.model_dump()) as checkpoint:
        before = None if fresh else RagCache.there(path, fingerprint)
        if before is not None and before.fingerprint != fingerprint:
            # It may be read as it is; new answers beside the old ones would give both one window's name.
            log.warning(
                "all questions are asked again: the generator's window is known in only one of the two cases",
                cache=str(path),
            )
            before = None
        answers = dict(before.answers) if before else {}
        answers |= {row.pop("id"): RagAnswer.model_validate(row) for row in checkpoint.rows(checkpoint.ids)}
        missing = RagCache(fingerprint=fingerprint, answers=answers).missing(tasks)

        def keep(name: str, answer: RagAnswer) -> None:
            checkpoint.add(name, answer.model_dump())
            answers[name] = answer
            done(len(answers), len(tasks))

        await naive_rag(
            missing,
            retriever=retriever,
            generator=generator,
            topk=fingerprint.topk,
            concurrency=concurrency,
            keep=keep,
            judge=judge,
        )
        cache = RagCache(fingerprint=fingerprint, answers={task.id: answers[task.id] for task in tasks})
        cache.save(path)
        checkpoint.remove()
    return cache
