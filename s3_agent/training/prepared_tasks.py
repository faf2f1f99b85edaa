"""The tasks that a run trains and validates on, and the record of what they were made from."""

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from s3_agent.data.naive_rag.cache import RagCache, beyond_rag
from s3_agent.data.naive_rag.fingerprint import Fingerprint
from s3_agent.data.questions import Dropped
from s3_agent.data.tasks import load_tasks
from s3_agent.data_identity import rag_fingerprint
from s3_agent.errors import ConfigError
from s3_agent.recipe import Recipe
from s3_agent.types import Task


class DataRecord(BaseModel):
    """What a run was trained on, written into its folder as `data.json`.

    `mismatch` lists the fields in which the inputs of the RAG cache differ; without `allow_mismatch` it is empty.
    Without a cache there is neither a fingerprint nor an accuracy, and every task is kept.
    """

    fingerprint: Fingerprint | None
    mismatch: list[str]
    train: int
    kept: int
    dropped: dict[str, Any]
    validation: int
    naive_rag_accuracy: float | None


@dataclass(frozen=True, slots=True)
class PreparedTasks:
    """Training tasks that naive RAG can not answer (all, without a cache), validation tasks, and the record of both."""

    train: list[Task]
    validation: list[Task]
    record: DataRecord


def prepare_tasks(recipe: Recipe) -> PreparedTasks:
    """The tasks of a run; if there is a RAG cache, with its scores.

    Raises RagCacheError for a cache with other inputs and for a task without an answer, and ConfigError for too few
    tasks and for a task without the evidence that the reward needs.
    """
    train, validation = load_tasks(recipe.data.train), load_tasks(recipe.data.validation)
    if recipe.agent.scoring.needs_evidence and (without := [one for one in (*train, *validation) if not one.evidence]):
        raise ConfigError(
            f"{len(without)} tasks have no evidence, which the reward {recipe.agent.reward} needs; the first is "
            f"{without[0].id!r}",
            remedy="take them out of data.train and data.validation, or use another agent.reward",
        )
    kept, fingerprint, mismatch, accuracy, dropped = train, None, [], None, Dropped()
    if (path := recipe.data.rag_cache) is not None:
        fingerprint = rag_fingerprint(recipe)
        cache = RagCache.read(path) if recipe.data.allow_mismatch else RagCache.load(path, expected=fingerprint)
        train, validation = cache.scored(train), cache.scored(validation)
        kept, mismatch = beyond_rag(train, dropped), cache.differences(fingerprint)
        accuracy = sum(task.rag_score or 0.0 for task in (*train, *validation)) / (len(train) + len(validation))
    if len(kept) < recipe.trainer.questions_played:
        raise ConfigError(
            f"{len(kept)} training tasks are left that naive RAG does not answer, but a step needs "
            f"{recipe.trainer.questions_played}",
            remedy="give more tasks in data.train, or lower trainer.questions_per_step",
        )
    record = DataRecord(
        fingerprint=fingerprint,
        mismatch=mismatch,
        train=len(train),
        kept=len(kept),
        dropped=dropped.report(),
        validation=len(validation),
        naive_rag_accuracy=accuracy,
    )
    return PreparedTasks(kept, validation[: recipe.data.validation_size], record)
