"""Naive-RAG answers of every task, stored with the fingerprint of what produced them (spec §4.3, §4.4).

s3 trains on what naive RAG can not answer and reports the gain beyond it, so a cache of another corpus, index,
generator or prompt would silently change the task: it is refused, with the part that differs (promise 4).
"""

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

from s3_agent.agents.base import normalize_question
from s3_agent.clients.chat_model import Message
from s3_agent.clients.generator import Generator, GeneratorSettings
from s3_agent.clients.judge import Judge, JudgeSettings, judge_messages
from s3_agent.clients.prompts import AnswerPrompt, ContextLayout, answer_messages
from s3_agent.clients.retriever import Retriever
from s3_agent.errors import RagCacheError
from s3_agent.rollout.scoring import check_answer
from s3_agent.types import Passage, Task

YES_NO = {"yes", "no", "true", "false", "Yes", "No", "True", "False"}


def _digest(messages: Sequence[Message]) -> str:
    return hashlib.sha256(json.dumps(messages).encode()).hexdigest()


class Fingerprint(BaseModel):
    """What a naive-RAG answer depends on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: str
    retriever: str
    topk: int
    generator: str
    max_tokens: int | None
    prompt: str
    judge: str = "span"

    @classmethod
    def of(
        cls,
        *,
        corpus: str,
        retriever: str,
        topk: int,
        generator: GeneratorSettings,
        layout: ContextLayout = "selected",
        judge: JudgeSettings | None = None,
    ) -> Self:
        """The fingerprint for a corpus hash, an index description, a generator and what checks its answers."""
        probe = [Passage(id="0", title="title", text="text")]
        prompt = _digest(answer_messages("question", probe, kind=generator.kind, prompt=AnswerPrompt(layout=layout)))
        checked = "span"
        if judge is not None and judge.rule != "span":
            asked = _digest(judge_messages("question", "answer", ["gold"], judge.prompt))
            checked = f"{judge.rule}:{judge.kind}:{judge.model}:{asked}"
        return cls(
            corpus=corpus,
            retriever=retriever,
            topk=topk,
            generator=f"{generator.kind}:{generator.model}",
            max_tokens=generator.max_tokens,
            prompt=prompt,
            judge=checked,
        )


class RagAnswer(BaseModel):
    """The naive-RAG answer of one task; scores are 0 or 1."""

    question: str
    answer: str
    score: int
    em_score: int


class RagCache(BaseModel):
    """Answers by task id, with the fingerprint that they were made under."""

    fingerprint: Fingerprint
    answers: dict[str, RagAnswer]

    @classmethod
    def load(cls, path: Path, *, expected: Fingerprint) -> Self:
        """The cache at `path`. Raises RagCacheError when it is missing, broken or another's."""
        rebuild = "build it for these parts: s3-agent rag-cache build --recipe …"
        try:
            cache = cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as cause:
            raise RagCacheError(f"the RAG cache {path} can not be read: {cause}", remedy=rebuild) from cause
        stored, wanted = cache.fingerprint.model_dump(), expected.model_dump()
        different = [f"{key} is {stored[key]!r}, not {wanted[key]!r}" for key in wanted if stored[key] != wanted[key]]
        if different:
            raise RagCacheError(
                f"the RAG cache {path} was made with other parts: " + "; ".join(different), remedy=rebuild
            )
        return cache

    def save(self, path: Path) -> None:
        """Write the cache; an interrupted write leaves the old file."""
        partial = path.with_suffix(path.suffix + ".partial")
        partial.write_text(self.model_dump_json(indent=1), encoding="utf-8")
        partial.replace(path)

    def scored(self, tasks: Sequence[Task]) -> list[Task]:
        """The tasks with their naive-RAG score. Raises RagCacheError for a task that is not in the cache."""
        missing = [
            task.id for task in tasks if (hit := self.answers.get(task.id)) is None or hit.question != task.question
        ]
        if missing:
            raise RagCacheError(
                f"{len(missing)} of {len(tasks)} tasks are not in the RAG cache, the first is {missing[0]!r}",
                remedy="build it again: s3-agent rag-cache build --recipe …",
            )
        return [task.model_copy(update={"rag_score": float(self.answers[task.id].score)}) for task in tasks]


def beyond_rag(tasks: Sequence[Task]) -> list[Task]:
    """The training set of spec §4.4: no yes/no questions, none that naive RAG already answers."""
    return [task for task in tasks if task.rag_score == 0 and not YES_NO.intersection(task.golden_answers)]


async def naive_rag(
    tasks: Sequence[Task],
    *,
    retriever: Retriever,
    generator: Generator,
    topk: int,
    concurrency: int,
    done: Callable[[int], None],
    judge: Judge | None = None,
) -> dict[str, RagAnswer]:
    """Answer every task from the top passages of its own question; `done` is told of each finished one.

    Raises the first RetrieverError, GeneratorError or JudgeError and gives up the rest.
    """
    slots = asyncio.Semaphore(concurrency)

    async def answer(task: Task) -> tuple[str, RagAnswer]:
        async with slots:
            passages = await retriever.retrieve(normalize_question(task.question), topk=topk)
            text = await generator.answer(task.question, await generator.fit(task.question, passages))
            accuracy = await check_answer(task, text, judge=judge)
        done(1)
        return task.id, RagAnswer(
            question=task.question,
            answer=text,
            score=int(accuracy.value),
            em_score=int(accuracy.metrics["exact_match"]),
        )

    try:
        async with asyncio.TaskGroup() as group:
            jobs = [group.create_task(answer(task)) for task in tasks]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed
    return dict(job.result() for job in jobs)
