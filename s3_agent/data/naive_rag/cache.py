"""Naive-RAG answers of every task, stored with the fingerprint of what produced them (docs/data.md#the-rag-cache).

s3 trains on the questions that naive RAG can not answer and reports the gain over it, so a cache with another corpus,
index, generator or prompt would silently change the task. It is refused, and the error names the difference
(docs/promises.md, 4).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, SerializerFunctionWrapHandler, model_serializer

from s3_agent.data.files.whole import write_whole
from s3_agent.data.naive_rag.fingerprint import Fingerprint
from s3_agent.data.questions import Dropped
from s3_agent.errors import RagCacheError
from s3_agent.questions import normalize_question
from s3_agent.types import Task

YES_NO = {"yes", "no", "true", "false", "Yes", "No", "True", "False"}
REBUILD = "build it for this recipe: s3-agent rag-cache build --recipe …"


class RagAnswer(BaseModel):
    """The naive-RAG answer of one task; scores are 0 or 1.

    `question` is normalised; `golden_answers` are those used for scoring, None in published caches, which do not record
    them. `answer` is None in published caches if the original got no answer; then the score does not count.
    `data_source` and `protected` are the task's.
    """

    question: str
    answer: str | None
    score: int
    em_score: int
    data_source: str = ""
    golden_answers: tuple[str, ...] | None = None
    protected: str | None = None

    @model_serializer(mode="wrap")
    def _only_where_protected(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written = write(self)
        if written.get("protected") is None:
            written.pop("protected", None)
        return written

    def answers(self, task: Task) -> bool:
        """Whether this answers the task, whose question may have changed since."""
        return self.answer is not None and self.question == normalize_question(task.question)

    def scores(self, task: Task) -> bool:
        """Whether its scores use the golden answers of the task, which may have been corrected since."""
        return self.golden_answers is not None and sorted(self.golden_answers) == sorted(task.golden_answers)


class RagCache(BaseModel):
    """Answers by task id, with the fingerprint of their inputs; None for a published file, which has none."""

    fingerprint: Fingerprint | None
    answers: dict[str, RagAnswer]

    @classmethod
    def read(cls, path: Path) -> Self:
        """The cache at `path`, whatever its inputs were. Raises RagCacheError if it is missing or broken."""
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as cause:
            # The first line only: the others quote what the file holds.
            reason = str(cause).splitlines()[0]
            raise RagCacheError(f"the RAG cache {path} can not be read: {reason}", remedy=REBUILD) from cause

    @classmethod
    def load(cls, path: Path, *, expected: Fingerprint) -> Self:
        """The cache at `path`. Raises RagCacheError if it is missing, broken or has other inputs."""
        cache = cls.read(path)
        if different := cache.differences(expected):
            raise RagCacheError(
                f"the RAG cache {path} was made with other inputs: " + "; ".join(different),
                remedy=f"{REBUILD}; data.allow_mismatch=true accepts it, and the run's record says so",
            )
        return cache

    @classmethod
    def there(cls, path: Path, expected: Fingerprint) -> Self | None:
        """The cache at `path`; None if it is missing, broken or has other inputs: then all answers are requested."""
        try:
            return cls.load(path, expected=expected)
        except RagCacheError:
            return None

    def differences(self, expected: Fingerprint) -> list[str]:
        """The fields in which the cache's inputs differ from the `expected` ones, as text for messages."""
        if self.fingerprint is None:
            return ["it is a published file, which does not record its inputs"]
        return self.fingerprint.differences(expected)

    def save(self, path: Path) -> None:
        """Write the cache, with protected answers for its owner alone; an interrupted write leaves the old file.

        Raises DataError if the disk is full.
        """
        private = any(answer.protected for answer in self.answers.values())
        write_whole(path, self.model_dump_json(indent=1), private=private)

    def missing(self, tasks: Sequence[Task]) -> list[Task]:
        """The tasks without an answer here, or with one that was scored with other golden answers."""
        return [task for task in tasks if not self._has(task)]

    def _has(self, task: Task) -> bool:
        hit = self.answers.get(task.id)
        return hit is not None and hit.answers(task) and (self.fingerprint is None or hit.scores(task))

    def scored(self, tasks: Sequence[Task]) -> list[Task]:
        """The tasks with their naive-RAG score. Raises RagCacheError for a task that is not in the cache."""
        if missing := self.missing(tasks):
            raise RagCacheError(
                f"{len(missing)} of {len(tasks)} tasks are not in the RAG cache with this question and these golden "
                f"answers, the first is {missing[0].id!r}",
                remedy="answer them too: s3-agent rag-cache build --recipe …",
            )
        return [task.model_copy(update={"rag_score": float(self.answers[task.id].score)}) for task in tasks]


def beyond_rag(tasks: Sequence[Task], dropped: Dropped | None = None) -> list[Task]:
    """s3's training set, without yes/no questions and questions that naive RAG answers; `dropped` counts them."""
    dropped, kept = dropped or Dropped(), []
    for task in tasks:
        if YES_NO.intersection(task.golden_answers):
            dropped.add("with a yes or no for an answer", task.id)
        elif task.rag_score != 0:
            dropped.add("solved by naive RAG", task.id)
        else:
            kept.append(task)
    return kept
