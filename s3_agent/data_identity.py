"""What a recipe makes of its data: the fingerprint of its naive RAG, and the tasks that it trains and tests on."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from pydantic import BaseModel

from retrieval_server.errors import RetrievalError
from retrieval_server.indexing import expected_manifest, open_corpus
from s3_agent.clients.connections import get
from s3_agent.clients.model_server import window_of
from s3_agent.data.naive_rag.cache import RagCache, beyond_rag
from s3_agent.data.naive_rag.fingerprint import Fingerprint
from s3_agent.data.questions import Dropped
from s3_agent.data.tasks import load_tasks
from s3_agent.errors import ConfigError
from s3_agent.recipe import Recipe
from s3_agent.types import Task


class DataRecord(BaseModel):
    """What a run was trained on, written into its folder as `data.json`.

    `mismatch` lists the fields in which the RAG cache was made with other parts; it is empty but for `allow_mismatch`.
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


def index_identity(recipe: Recipe) -> dict[str, Any]:
    """Which corpus and index answer: a running server of ours says it itself, another's is known by its address."""
    if recipe.retriever.url is None:
        settings = recipe.retriever.index
        try:
            corpus = open_corpus(recipe.data.corpus, recipe.index_folder)
        except RetrievalError as cause:
            raise ConfigError(str(cause), remedy="prepare it: s3-agent data all --recipe …") from cause
        return {**expected_manifest(corpus, settings), "settings": settings.answers()}
    response = get(recipe.retriever.url + "/readyz", timeout=10.0)
    if response.status_code == 200 and "corpus" in (manifest := response.json()):
        return manifest
    return {"corpus": "unknown", "backend": recipe.retriever.url, "settings": {}}


def retriever_text(index: Mapping[str, Any]) -> str:
    """The index and its search in one line: the number of its format, and a stemmer's release, change its answers."""
    made = {"backend": index["backend"], "format": index.get("format"), **index["settings"]}
    return json.dumps(made | ({"stemmer_release": index["stemmer"]} if "stemmer" in index else {}))


def generator_window(recipe: Recipe) -> int | None:
    """The context of the generator in tokens: the recipe's, or what a running server says; None: not known."""
    settings = recipe.generator
    if settings.context_tokens is not None or settings.hosted or settings.kind != "openai":
        return settings.context_tokens or settings.served_window
    try:
        response = get(f"{settings.url}/models", timeout=10.0)
        return window_of(response.json(), settings.model) if response.status_code == 200 else None
    except (httpx.HTTPError, ValueError):  # it is not needed for what is answered
        return None


def rag_fingerprint(recipe: Recipe) -> Fingerprint:
    """What this recipe's naive-RAG answers depend on."""
    index = index_identity(recipe)
    return Fingerprint.of(
        corpus=index["corpus"],
        retriever=retriever_text(index),
        topk=recipe.data.rag_topk,
        generator=recipe.generator.client,
        layout=recipe.data.rag_layout,
        judge=recipe.judge,
        window=generator_window(recipe),
    )


def prepare_tasks(recipe: Recipe) -> PreparedTasks:
    """The tasks of a run, scored where there is a RAG cache.

    Raises RagCacheError for a cache of other parts and for a task without an answer.
    """
    train, validation = load_tasks(recipe.data.train), load_tasks(recipe.data.validation)
    kept, fingerprint, mismatch, accuracy, dropped = train, None, [], None, Dropped()
    if (path := recipe.data.rag_cache) is not None:
        fingerprint = rag_fingerprint(recipe)
        cache = RagCache.read(path) if recipe.data.allow_mismatch else RagCache.load(path, expected=fingerprint)
        train, validation = cache.scored(train), cache.scored(validation)
        kept, mismatch = beyond_rag(train, dropped), cache.differences(fingerprint)
        accuracy = sum(task.rag_score or 0.0 for task in (*train, *validation)) / (len(train) + len(validation))
    if len(kept) < recipe.trainer.questions_per_step:
        raise ConfigError(
            f"{len(kept)} training tasks are left that naive RAG does not answer, a step needs "
            f"{recipe.trainer.questions_per_step}",
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
