"""Runs naive RAG over all tasks of a recipe: each is answered and scored once, and kept even if the job is killed."""

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
    """Answer every task from the top passages for its question; `keep` is called with each answer when it arrives.

    Raises the first RetrieverError, GeneratorError or JudgeError and cancels the rest. Answers that ended at the
    generator's token limit are scored unchanged, and counted in the log.
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
                protected=task.protected,
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
    """Build the cache of these tasks at `path`; only missing answers are requested.

    Answers of a killed call and, unless `fresh`, of the file are kept if their fingerprint is the same. Raises what
    `naive_rag` raises, and keeps the answers so far.
    """
    with Checkpoint(path, made_of=fingerprint.model_dump()) as checkpoint:
        before = None if fresh else RagCache.there(path, fingerprint)
        if before is not None and before.fingerprint != fingerprint:
            # The old cache may be read; but adding new answers to it would record one window for both.
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
