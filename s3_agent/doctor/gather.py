"""Collects a recipe, the files that it names and this machine into the doctor's `Case`.

Called by `job`. It raises nothing: an input that can not be read is recorded in the case, and a check reports it.
"""

from pathlib import Path

import httpx
from omegaconf import DictConfig

from retrieval_server.index_kinds import kind_of
from retrieval_server.rerankers import RERANKERS
from s3_agent.agl.cpu import precision
from s3_agent.agl.verl_config import TrainerRecipe, TrainerSettings, settings_alone, trainer_config
from s3_agent.clients.connections import get
from s3_agent.clients.gateway_limit import LIMIT_PATH
from s3_agent.clients.http import bearer
from s3_agent.clients.servers import Identity, addresses, served_identities
from s3_agent.data_identity import rag_fingerprint
from s3_agent.doctor import inputs
from s3_agent.doctor.case import Case, IndexFacts, ModelFiles
from s3_agent.doctor.serving_memory import DIMENSION, WIKI_18
from s3_agent.doctor.training import Training, read_training
from s3_agent.embedded import generator as embedded_generator
from s3_agent.errors import ConfigError, RetrieverError
from s3_agent.machine.description import Machine
from s3_agent.machine.host import pins, this_machine
from s3_agent.machine.model_files import missing_files, model_folder, model_shape
from s3_agent.machine.ray_nodes import RayNode, ask_nodes
from s3_agent.processes.run_folder import Run
from s3_agent.processes.serving import has_cpu_vllm, served_packages
from s3_agent.recipe import Recipe

ANSWERS_WITHIN_S = 5.0


def gather(recipe: Recipe, *, machine: Machine | None = None, run: Run | None = None) -> Case:
    """The case of a recipe on this machine, or on a described `machine`; then no files and no host are read.

    `run` is the existing run that is resumed.
    """
    problems: inputs.Problems = {}
    training, refused = _training(recipe)
    models = _models(recipe)
    if machine is not None:
        index = IndexFacts(WIKI_18, DIMENSION, supposed=True) if recipe.serves_corpus else None
        return Case(recipe, training, machine, models=models, index=index, refused=refused)
    train, validation = inputs.read_tasks(recipe, "train", problems), inputs.read_tasks(recipe, "validation", problems)
    corpus = inputs.open_corpus(recipe, problems)
    cache = inputs.read_rag_cache(recipe, problems)
    tokenizer = inputs.open_tokenizer(models["policy"], recipe.policy.template, problems)
    if train is not None and cache is not None:
        train = inputs.beyond_cache(train, cache)
    searched = corpus is not None or (recipe.retriever.url is None and not recipe.serves_corpus)
    known = searched and cache is not None
    pinned = pins("cuda" if recipe.trainer.device == "cuda" else "cpu")
    data = [recipe.data.corpus, recipe.data.train, recipe.data.validation]
    return Case(
        recipe,
        training,
        this_machine(
            paths=[recipe.runs, recipe.prepared, *filter(None, [recipe.generator.cache])], inputs=data, packages=pinned
        ),
        models=models,
        index=inputs.index_facts(recipe, corpus),
        tokenizer=tokenizer,
        vocabulary=inputs.vocabulary(models["policy"].folder),
        first_prompt=inputs.or_none(lambda: inputs.first_prompt(recipe, tokenizer, corpus, train)),
        train=train,
        validation=validation,
        rag_cache=cache,
        fingerprint=inputs.or_none(lambda: rag_fingerprint(recipe)) if known else None,
        unreadable=problems,
        refused=refused,
        pinned=pinned,
        precision=_precision(recipe),
        generator_refused=_generator(recipe),
        gateway_answer=_gateway_answer(recipe),
        retrievers=_retrievers(recipe),
        ray_nodes=_ray_nodes(recipe, sorted(pinned)),
        written=0 if run is None else _size(run.checkpoints),
    )


def _gateway_answer(recipe: Recipe) -> str | None:
    """What a user's gateway reports about its limit; None if it does not answer, which the run's start reports."""
    if recipe.gateway.url is None:
        return None
    try:
        answer = get(recipe.gateway.url + LIMIT_PATH, headers=bearer(recipe.gateway.key), timeout=ANSWERS_WITHIN_S)
    except httpx.HTTPError:
        return None
    return answer.text if answer.is_success else None


def _retrievers(recipe: Recipe) -> dict[str, Identity] | None:
    """What several retrieval servers report. A single one is asked at the start of the run."""
    if len(addresses(recipe.retriever.url or "")) < 2:
        return None
    try:
        return served_identities(recipe.retriever_url)
    except RetrieverError:
        return {}


def _ray_nodes(recipe: Recipe, packages: list[str]) -> list[RayNode] | str | None:
    """The nodes of a Ray that trains on several. A training on one node finds what it needs on this machine."""
    if recipe.trainer.nodes == 1 or recipe.ray.address is None:
        return None
    return ask_nodes(recipe.ray.address, runs=recipe.runs, policy=recipe.policy.model, packages=packages)


def _size(folder: Path) -> int:
    """The bytes of the files below a folder; 0 for a folder that does not exist."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _precision(recipe: Recipe) -> precision.Precision | None:
    """The precisions that this processor computes; measured only if the result can become a finding."""
    asks = recipe.generator.hosted and (recipe.generator.dtype != "auto" or recipe.generator.served_dtype)
    if recipe.trainer.device != "cpu" or not (asks or recipe.trainer.verl) or not has_cpu_vllm():
        return None
    return inputs.or_none(precision.measured)


def _generator(recipe: Recipe) -> tuple[str, str] | None:
    if not recipe.generator.hosted:
        return None
    try:
        served_packages(recipe)
    except ConfigError as cause:
        return cause.message, cause.remedy
    return None


def _training(recipe: Recipe) -> tuple[Training | None, tuple[str, str] | None]:
    settings = TrainerSettings(
        **recipe.trainer.model_dump(include=set(TrainerRecipe.model_fields)),
        run=recipe.name,
        model=recipe.policy.model,
        gateway_url=recipe.gateway_url,
        checkpoints=recipe.runs,
        validation_size=recipe.data.validation_size or 1,
        seed=recipe.seed,
    )
    try:
        return read_training(_composed(settings)), None
    except ConfigError as cause:
        return None, (cause.message, cause.remedy)
    except Exception as cause:  # hydra, OmegaConf and verl raise their own exceptions
        return None, (str(cause), "correct trainer.verl")


def _composed(settings: TrainerSettings) -> DictConfig:
    try:
        return trainer_config(settings, gateway_key="")
    except ImportError:  # a dry run needs no training stack, and `check_versions` reports a missing one
        return settings_alone(settings)


def _models(recipe: Recipe) -> dict[str, ModelFiles]:
    named = {"policy": recipe.policy.model}
    if recipe.generator.hosted and recipe.agent.asks_generator and recipe.generator.model != embedded_generator.NAME:
        named["generator"] = recipe.generator.model
    if recipe.retriever.url is None:
        settings = recipe.retriever.index
        named |= {f"retriever.index.{part}": name for part, name in kind_of(settings).models(settings).items()}
        if (rerank := recipe.retriever.rerank) is not None:
            model = RERANKERS[rerank.style].model(rerank)
            named |= {"retriever.rerank": model} if model is not None else {}
    found = {}
    for part, name in named.items():
        folder = model_folder(name)
        shape = None
        if part in ("policy", "generator"):
            shape = inputs.or_none(lambda name=name, folder=folder: model_shape(name, folder))
        found[part] = ModelFiles(name, folder, shape, missing_files(folder) if folder else ())
    return found
