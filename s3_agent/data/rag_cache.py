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

from s3_agent.agents.base import normalize_question, retrieval_query
from s3_agent.clients.chat_model import Message
from s3_agent.clients.generator import Generator, GeneratorSettings
from s3_agent.clients.judge import Judge, JudgeSettings, judge_messages
from s3_agent.clients.prompts import ContextLayout, answer_messages
from s3_agent.clients.retriever import Retriever
from s3_agent.data.checkpoint import Checkpoint
from s3_agent.data.files import write_whole
from s3_agent.data.questions import Dropped
from s3_agent.errors import RagCacheError
from s3_agent.rollout.scoring import check_answer
from s3_agent.types import Passage, Task

YES_NO = {"yes", "no", "true", "false", "Yes", "No", "True", "False"}
REBUILD = "build it for these parts: s3-agent rag-cache build --recipe …"


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
        prompt = _digest(answer_messages("question", probe, kind=generator.kind, layout=layout))
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

    @property
    def digest(self) -> str:
        """A short name of it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


class RagAnswer(BaseModel):
    """The naive-RAG answer of one task; scores are 0 or 1.

    `question` is normalised. `answer` is None in published caches where the original got none: that is no answer, and
    its score no score. `data_source` is the task's.
    """

    question: str
    answer: str | None
    score: int
    em_score: int
    data_source: str = ""

    def answers(self, task: Task) -> bool:
        """Whether this is an answer to the task, which may have been reworded since."""
        return self.answer is not None and self.question == normalize_question(task.question)


class RagCache(BaseModel):
    """Answers by task id, with the fingerprint that they were made under; None: of a published file that has none."""

    fingerprint: Fingerprint | None
    answers: dict[str, RagAnswer]

    @classmethod
    def read(cls, path: Path) -> Self:
        """The cache at `path`, whatever it was made with. Raises RagCacheError when it is missing or broken."""
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as cause:
            raise RagCacheError(f"the RAG cache {path} can not be read: {cause}", remedy=REBUILD) from cause

    @classmethod
    def load(cls, path: Path, *, expected: Fingerprint) -> Self:
        """The cache at `path`. Raises RagCacheError when it is missing, broken or another's."""
        cache = cls.read(path)
        if different := cache.differences(expected):
            raise RagCacheError(
                f"the RAG cache {path} was made with other parts: " + "; ".join(different),
                remedy=f"{REBUILD}; data.allow_mismatch=true takes it as it is, and the run's record says so",
            )
        return cache

    @classmethod
    def there(cls, path: Path, expected: Fingerprint) -> Self | None:
        """The cache at `path`; None when it is missing, broken or another's, and all has to be asked for."""
        try:
            return cls.load(path, expected=expected)
        except RagCacheError:
            return None

    def differences(self, expected: Fingerprint) -> list[str]:
        """The fields in which the cache was made with other parts than are `expected`, for people."""
        if self.fingerprint is None:
            return ["it is a published file, which does not say what made it"]
        stored, wanted = self.fingerprint.model_dump(), expected.model_dump()
        return [f"{key} is {stored[key]!r}, not {wanted[key]!r}" for key in wanted if stored[key] != wanted[key]]

    def save(self, path: Path) -> None:
        """Write the cache; an interrupted write leaves the old file. Raises DataError for a full disk."""
        write_whole(path, self.model_dump_json(indent=1))

    def missing(self, tasks: Sequence[Task]) -> list[Task]:
        """The tasks that have no answer here."""
        return [task for task in tasks if (hit := self.answers.get(task.id)) is None or not hit.answers(task)]

    def scored(self, tasks: Sequence[Task]) -> list[Task]:
        """The tasks with their naive-RAG score. Raises RagCacheError for a task that is not in the cache."""
        if missing := self.missing(tasks):
            raise RagCacheError(
                f"{len(missing)} of {len(tasks)} tasks are not in the RAG cache, the first is {missing[0].id!r}",
                remedy="answer them too: s3-agent rag-cache build --recipe …",
            )
        return [task.model_copy(update={"rag_score": float(self.answers[task.id].score)}) for task in tasks]


def beyond_rag(tasks: Sequence[Task], dropped: Dropped | None = None) -> list[Task]:
    """The training set of spec §4.4: no yes/no questions, none that naive RAG answers; `dropped` counts them."""
    dropped, kept = dropped or Dropped(), []
    for task in tasks:
        if YES_NO.intersection(task.golden_answers):
            dropped.add("with a yes or no for an answer", task.id)
        elif task.rag_score != 0:
            dropped.add("solved by naive RAG", task.id)
        else:
            kept.append(task)
    return kept


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

    Raises the first RetrieverError, GeneratorError or JudgeError and gives up the rest.
    """
    waiting = iter(tasks)

    async def work() -> None:
        for task in waiting:
            passages = await retriever.retrieve(retrieval_query(task.question), topk=topk)
            text = await generator.answer(task.question, await generator.fit(task.question, passages))
            accuracy = await check_answer(task, text, judge=judge)
            answer = RagAnswer(
                question=normalize_question(task.question),
                answer=text,
                score=int(accuracy.value),
                em_score=int(accuracy.metrics["exact_match"]),
                data_source=task.data_source,
            )
            keep(task.id, answer)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed


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
