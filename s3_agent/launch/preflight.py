"""What is looked at before a run: a recipe, the files it names and this machine become the doctor's `Case`.

The checks themselves are in `s3_agent.doctor`; gathering lies here because the corpus's fingerprint and the folder of
the index are the launcher's. Whatever can not be read becomes a finding: gathering raises nothing.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retrieval_server.config import DenseSettings
from retrieval_server.corpus import Corpus
from retrieval_server.errors import RetrievalError
from retrieval_server.indexing.manifest import MANIFEST, check, expected_manifest, read_manifest
from s3_agent.agents.s3 import S3Protocol
from s3_agent.agents.search_r1 import SearchR1Protocol
from s3_agent.agl.verl_config import TrainerRecipe, TrainerSettings, settings_alone, trainer_config
from s3_agent.clients.tokenizer import Tokenizer, load_tokenizer
from s3_agent.data.rag_cache import RagCache, beyond_rag
from s3_agent.data.tasks import load_tasks
from s3_agent.doctor.case import Case, IndexFacts, ModelFiles
from s3_agent.doctor.host_snapshot import pins, this_machine
from s3_agent.doctor.machine import Machine
from s3_agent.doctor.models import missing_files, model_folder, model_shape
from s3_agent.doctor.serving_memory import DIMENSION, WIKI_18
from s3_agent.doctor.training import Training, read_training
from s3_agent.embedded import generator as embedded_generator
from s3_agent.errors import S3AgentError
from s3_agent.launch.commands import gateway_url, index_folder
from s3_agent.launch.tasks import rag_fingerprint
from s3_agent.recipe import Recipe
from s3_agent.types import Passage, Task

SAMPLE = 200  # passages and tasks that are looked at for a long first prompt
Unreadable = dict[str, tuple[str, str]]


def gather(recipe: Recipe, *, machine: Machine | None = None) -> Case:
    """The case of a recipe on this machine, or on a described one, whose host and files are not looked at."""
    problems: Unreadable = {}
    training, refused = _training(recipe)
    models = _models(recipe)
    if machine is not None:
        index = IndexFacts(WIKI_18, DIMENSION, supposed=True) if recipe.retriever.url is None else None
        return Case(recipe, training, machine, models=models, index=index, refused=refused)
    train, validation = _tasks(recipe, "train", problems), _tasks(recipe, "validation", problems)
    corpus = _corpus(recipe, problems)
    cache = _rag_cache(recipe, problems)
    tokenizer = _tokenizer(models["policy"], problems)
    if train is not None and cache is not None:
        known = [task for task in train if task.id in cache.answers]
        scored = beyond_rag([task.model_copy(update={"rag_score": cache.answers[task.id].score}) for task in known])
        train = (*scored, *(task for task in train if task.id not in cache.answers))
    pinned = pins("cuda" if recipe.trainer.device == "cuda" else "cpu")
    data = [recipe.data.corpus, recipe.data.train, recipe.data.validation]
    return Case(
        recipe,
        training,
        this_machine(
            paths=[recipe.runs, recipe.prepared, *filter(None, [recipe.generator.cache])], inputs=data, packages=pinned
        ),
        models=models,
        index=_index(recipe, corpus),
        tokenizer=tokenizer,
        vocabulary=_vocabulary(models["policy"].folder),
        first_prompt=_first_prompt(recipe, tokenizer, corpus, train),
        train=train,
        validation=validation,
        rag_cache=cache,
        fingerprint=_or_none(lambda: rag_fingerprint(recipe)) if corpus is not None and cache is not None else None,
        unreadable=problems,
        refused=refused,
        pinned=pinned,
    )


def _or_none[T](make: Callable[[], T]) -> T | None:
    try:
        return make()
    except (S3AgentError, RetrievalError, OSError):  # told by the check of what it is made of
        return None


def _training(recipe: Recipe) -> tuple[Training | None, tuple[str, str] | None]:
    settings = TrainerSettings(
        **recipe.trainer.model_dump(include=set(TrainerRecipe.model_fields)),
        run=recipe.name,
        model=recipe.policy.model,
        gateway_url=gateway_url(recipe),
        checkpoints=recipe.runs,
        validation_size=recipe.data.validation_size or 1,
        seed=recipe.seed,
    )
    try:
        return read_training(trainer_config(settings, gateway_key="")), None
    except ImportError:  # a dry run needs no training stack; that it is missing is told by `check_versions`
        return read_training(settings_alone(settings)), None
    except Exception as cause:  # hydra, OmegaConf and verl have each their own
        return None, (str(cause), "correct trainer.verl")


def _models(recipe: Recipe) -> dict[str, ModelFiles]:
    named = {"policy": recipe.policy.model}
    if recipe.generator.hosted and recipe.agent.asks_generator and recipe.generator.model != embedded_generator.NAME:
        named["generator"] = recipe.generator.model
    if recipe.retriever.url is None and isinstance(recipe.retriever.index, DenseSettings):
        named["encoder"] = recipe.retriever.index.encoder.model
    found = {}
    for part, name in named.items():
        folder = model_folder(name)
        shape = None if part == "encoder" else _or_none(lambda name=name, folder=folder: model_shape(name, folder))
        found[part] = ModelFiles(name, folder, shape, missing_files(folder) if folder else ())
    return found


def _tasks(recipe: Recipe, name: str, problems: Unreadable) -> tuple[Task, ...] | None:
    try:
        tasks = load_tasks(getattr(recipe.data, name))
    except S3AgentError as cause:
        problems[name] = (cause.message, cause.remedy)
        return None
    return tuple(tasks if name == "train" else tasks[: recipe.data.validation_size])


def _corpus(recipe: Recipe, problems: Unreadable) -> Corpus | None:
    if recipe.retriever.url is not None:
        return None
    try:
        return Corpus(recipe.data.corpus, lines=index_folder(recipe))
    except RetrievalError as cause:
        problems["corpus"] = (str(cause).splitlines()[0], "bash data_process.sh, or set data.corpus")
        return None


def _rag_cache(recipe: Recipe, problems: Unreadable) -> RagCache | None:
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


def _tokenizer(policy: ModelFiles, problems: Unreadable) -> Tokenizer | None:
    if policy.folder is None or policy.missing:
        return None
    try:
        return load_tokenizer(str(policy.folder))
    except ImportError:
        return None
    except S3AgentError as cause:
        problems["tokenizer"] = (cause.message, cause.remedy)
        return None


def _vocabulary(folder: Path | None) -> int | None:
    """Tokens of a `tokenizer.json`, the added ones included."""
    if folder is None or not (path := folder / "tokenizer.json").is_file():
        return None
    try:
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        ids = [*dict(told["model"]["vocab"]).values(), *(token["id"] for token in told.get("added_tokens", ()))]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return max(ids, default=0) + 1


def _index(recipe: Recipe, corpus: Corpus | None) -> IndexFacts | None:
    if recipe.retriever.url is not None:
        return None
    settings, folder = recipe.retriever.index, index_folder(recipe)
    if settings.kind == "lucene" or (settings.kind == "dense" and settings.file is not None):
        path = settings.path if settings.kind == "lucene" else settings.file
        problem = None if path is not None and path.exists() else f"the index {path} is not there"
        return IndexFacts(WIKI_18, DIMENSION, supposed=True, problem=problem, remedy="give the path of an index")
    if corpus is None:
        return IndexFacts(WIKI_18, DIMENSION, supposed=True)
    remedy = f"s3-agent index build --corpus {recipe.data.corpus} --index {folder} --backend {folder}.yaml"
    if settings.kind == "bm25" and not (folder / MANIFEST).exists():
        return IndexFacts(len(corpus), DIMENSION)  # it is built when the run starts
    try:
        manifest = read_manifest(folder, remedy=remedy)
        check(manifest, folder, expected_manifest(corpus, settings), remedy=remedy)
        return IndexFacts(int(manifest["passages"]), int(manifest.get("dimension", DIMENSION)))
    except Exception as cause:  # the retriever's own error, or a manifest that is none
        problem = None if settings.kind == "bm25" else str(cause).splitlines()[0]
        return IndexFacts(len(corpus), DIMENSION, problem=problem, remedy=remedy)


def _first_prompt(
    recipe: Recipe, tokenizer: Tokenizer | None, corpus: Corpus | None, train: tuple[Task, ...] | None
) -> int | None:
    """Tokens of a first prompt with the longest of some questions and passages of ordinary length."""
    if tokenizer is None or not train or recipe.agent.prompt == "data":
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
    protocol = S3Protocol(recipe.agent.prompt) if recipe.agent.name == "s3" else SearchR1Protocol("instruct")
    return len(tokenizer.chat(protocol.message(task, passages, tokenizer.control)))
