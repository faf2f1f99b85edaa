"""What a run trains on and validates with: the recipe's tasks, scored by its naive-RAG cache, in the order of play."""

import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import httpx

from retrieval_server.corpus import Corpus
from retrieval_server.indexing import expected_manifest
from s3_agent.data.rag_cache import Fingerprint, RagCache, beyond_rag
from s3_agent.data.tasks import in_training_order, load_tasks
from s3_agent.errors import ConfigError
from s3_agent.launch.run import Run
from s3_agent.recipe import Recipe
from s3_agent.types import Task


def prepare_tasks(recipe: Recipe) -> tuple[list[Task], list[Task]]:
    """Training tasks that naive RAG can not answer, and validation tasks, both scored; all, when there is no cache.

    Raises RagCacheError for a cache of other parts.
    """
    train, validation = load_tasks(recipe.data.train), load_tasks(recipe.data.validation)
    if recipe.data.rag_cache is not None:
        cache = RagCache.load(recipe.data.rag_cache, expected=rag_fingerprint(recipe))
        train, validation = beyond_rag(cache.scored(train)), cache.scored(validation)
    if len(train) < recipe.trainer.questions_per_step:
        raise ConfigError(
            f"{len(train)} training tasks are left that naive RAG does not answer, a step needs "
            f"{recipe.trainer.questions_per_step}",
            remedy="give more tasks in data.train, or lower trainer.questions_per_step",
        )
    return train, validation[: recipe.data.validation_size]


def index_identity(recipe: Recipe) -> dict[str, Any]:
    """Which corpus and index answer: a running server of ours says it itself, another's is known by its address."""
    if recipe.retriever.url is None:
        index = recipe.retriever.index
        return {**expected_manifest(Corpus(recipe.data.corpus), index), "settings": index.answers()}
    response = httpx.get(recipe.retriever.url + "/readyz", timeout=10.0)
    if response.status_code == 200 and "corpus" in (manifest := response.json()):
        return manifest
    return {"corpus": "unknown", "backend": recipe.retriever.url, "settings": {}}


def rag_fingerprint(recipe: Recipe) -> Fingerprint:
    """What this recipe's naive-RAG answers depend on."""
    index = index_identity(recipe)
    return Fingerprint.of(
        corpus=index["corpus"],
        retriever=json.dumps({"backend": index["backend"], **index["settings"]}),
        topk=recipe.data.rag_topk,
        generator=recipe.generator.client,
        layout=recipe.data.rag_layout,
        judge=recipe.judge,
    )


def write_tasks(recipe: Recipe, run: Run, train: Sequence[Task], validation: Sequence[Task]) -> None:
    """The run's own task files; the trainer goes through them from the first line to the last.

    The order is the seed's alone: a run that is resumed, or given more steps, plays what it would have played. Raises
    ConfigError when the folder holds another order.
    """
    ordered = in_training_order(
        train,
        steps=recipe.trainer.steps,
        questions_per_step=recipe.trainer.questions_per_step,
        seed=recipe.seed if recipe.data.shuffle else None,
    )
    for path, tasks in ((run.train, ordered), (run.validation, validation)):
        rows = [task.model_dump_json(exclude={"initial_passages"}) for task in tasks]
        _refuse_another(path, rows)
        path.write_text("".join(row + "\n" for row in rows), encoding="utf-8")


def _refuse_another(path: Path, rows: Sequence[str]) -> None:
    if not path.exists():
        return
    before = path.read_text(encoding="utf-8").split("\n")[:-1]
    for number, (old, new) in enumerate(zip_longest(before, rows), 1):
        if old is not None and new is not None and old != new:
            raise ConfigError(
                f"{path}:{number}: the run was started with other tasks, or in another order",
                remedy="resume it with the data, the seed and the batch sizes that it was started with",
            )
