"""Reads the files that a recipe names, for the doctor: tasks, corpus, index, RAG cache, tokenizer.

Called by `gather`. Nothing raises: for a file that can not be read, `problems` gets the recipe's field with the reason
and the remedy.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retrieval_server.corpus import Corpus
from retrieval_server.errors import RetrievalError
from retrieval_server.index_kinds import kind_of
from retrieval_server.indexing.manifest import MANIFEST, check, expected_manifest, read_manifest
from s3_agent.clients.tokenizer import ChatTemplate, Tokenizer, load_tokenizer
from s3_agent.data.naive_rag.cache import RagCache, beyond_rag
from s3_agent.data.tasks import load_tasks
from s3_agent.doctor.case import IndexFacts, ModelFiles
from s3_agent.doctor.serving_memory import DIMENSION, WIKI_18
from s3_agent.errors import S3AgentError
from s3_agent.recipe import Recipe
from s3_agent.types import Passage, Task

SAMPLE = 200  # how many passages and tasks are read to find the length of an ordinary first prompt
Problems = dict[str, tuple[str, str]]


def or_none[T](make: Callable[[], T]) -> T | None:
    """The result of `make`, or None if it fails."""
    try:
        return make()
    except (S3AgentError, RetrievalError, OSError):  # the check of the inputs reports the failure
        return None


def read_tasks(recipe: Recipe, name: str, problems: Problems) -> tuple[Task, ...] | None:
    """The tasks of `data.train` or `data.validation`."""
    try:
        tasks = load_tasks(getattr(recipe.data, name))
    except S3AgentError as cause:
        problems[name] = (cause.message, cause.remedy)
        return None
    return tuple(tasks if name == "train" else tasks[: recipe.data.validation_size])


def beyond_cache(train: tuple[Task, ...], cache: RagCache) -> tuple[Task, ...]:
    """The training tasks that naive RAG does not answer correctly, and those that are not in the cache."""
    known = [task for task in train if task.id in cache.answers]
    scored = beyond_rag([task.model_copy(update={"rag_score": cache.answers[task.id].score}) for task in known])
    return (*scored, *(task for task in train if task.id not in cache.answers))


def open_corpus(recipe: Recipe, problems: Problems) -> Corpus | None:
    """The corpus of the retriever that we start; the saved positions of its lines are used if they exist."""
    if not recipe.serves_corpus:
        return None
    try:
        return Corpus(recipe.data.corpus, lines=recipe.index_folder)
    except RetrievalError as cause:
        problems["corpus"] = (str(cause).splitlines()[0], "s3-agent data all --recipe …, or set data.corpus")
        return None


def read_rag_cache(recipe: Recipe, problems: Problems) -> RagCache | None:
    """The naive-RAG answers, even if their fingerprint is another; a check compares it."""
    path = recipe.data.rag_cache
    if path is None:
        return None
    try:
        return RagCache.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        reason = str(cause).splitlines()[0]
        problems["rag_cache"] = (
            f"{path} can not be read: {reason}",
            f"s3-agent rag-cache build --recipe {recipe.name}",
        )
        return None


def open_tokenizer(policy: ModelFiles, template: ChatTemplate, problems: Problems) -> Tokenizer | None:
    """The policy's tokenizer, if its files are on this machine and transformers is installed."""
    if policy.folder is None or policy.missing:
        return None
    try:
        return load_tokenizer(str(policy.folder), template)
    except ImportError:
        return None
    except S3AgentError as cause:
        problems["tokenizer"] = (cause.message, cause.remedy)
        return None


def vocabulary(folder: Path | None) -> int | None:
    """The number of tokens in a `tokenizer.json`, including the added tokens."""
    if folder is None or not (path := folder / "tokenizer.json").is_file():
        return None
    try:
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        ids = [*dict(told["model"]["vocab"]).values(), *(token["id"] for token in told.get("added_tokens", ()))]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return max(ids, default=0) + 1


def index_facts(recipe: Recipe, corpus: Corpus | None) -> IndexFacts | None:
    """The index of the retriever that we start: its size, and a problem if it belongs to another corpus or settings."""
    if recipe.retriever.url is not None:
        return None
    settings, folder = recipe.retriever.index, recipe.index_folder
    kind = kind_of(settings)
    if not kind.searches_corpus:
        try:
            kind.source(folder, settings)
        except RetrievalError as cause:
            what, _, remedy = str(cause).partition("\n  What to do: ")
            return IndexFacts(0, DIMENSION, problem=what, remedy=remedy)
        return None
    if (path := kind.foreign(settings)) is not None:
        problem = None if path.exists() else f"the index {path} does not exist"
        return IndexFacts(WIKI_18, DIMENSION, supposed=True, problem=problem, remedy="give the path of an index")
    if corpus is None:
        return IndexFacts(WIKI_18, DIMENSION, supposed=True)
    remedy = f"s3-agent index build --corpus {recipe.data.corpus} --index {folder} --backend {folder}.yaml"
    if kind.built_at_start and not (folder / MANIFEST).exists():
        return IndexFacts(len(corpus), DIMENSION)  # it is built when the run starts
    try:
        manifest = read_manifest(folder, remedy=remedy)
        check(manifest, folder, expected_manifest(corpus, settings), remedy=remedy)
        return IndexFacts(int(manifest["passages"]), int(manifest.get("dimension", DIMENSION)))
    except Exception as cause:  # the retriever's own error, or a manifest in another form
        problem = None if kind.built_at_start else str(cause).splitlines()[0]
        return IndexFacts(len(corpus), DIMENSION, problem=problem, remedy=remedy)


def first_prompt(
    recipe: Recipe, tokenizer: Tokenizer | None, corpus: Corpus | None, train: tuple[Task, ...] | None
) -> int | None:
    """The tokens of a first prompt with the longest question of a sample and passages of ordinary length."""
    method = recipe.agent.method
    if tokenizer is None or not train or recipe.agent.prompt == "data" or method.protocol is None:
        return None
    limits = recipe.agent.limits
    passages: list[Passage] = []
    if limits.initial_topk:
        if corpus is None:
            return None
        rows = [corpus[number] for number in range(min(SAMPLE, len(corpus)))]
        ordinary = sorted(rows, key=lambda row: len(row.text))[len(rows) // 2]
        passages = [Passage(id=ordinary.id, title=ordinary.title, text=ordinary.text)] * limits.initial_topk
    task = max(train[:SAMPLE], key=lambda task: len(task.question))
    protocol = method.protocol(recipe.agent.prompt)
    return len(tokenizer.chat(protocol.message(task, passages, tokenizer.control)))
