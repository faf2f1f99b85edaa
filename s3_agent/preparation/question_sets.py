"""Fetches a data set for an evaluation: its test questions, and the corpus and index if the set brings a corpus.

`s3-agent eval NAME` calls it. It runs the stages of data preparation that this needs, in a folder for each set, so a
second call fetches nothing and needs no network.
"""

from dataclasses import dataclass
from pathlib import Path

from s3_agent.data.files.stages import Ledger, Say, run_stages
from s3_agent.data.files.whole import Report, silent
from s3_agent.data.published.datasets import DATA_SETS
from s3_agent.data.published.sources import SourceSettings
from s3_agent.errors import ConfigError, DataError
from s3_agent.names import file_name
from s3_agent.preparation.stages import DataStages
from s3_agent.recipe import Recipe

_OFFLINE = "s3-agent eval embedded"


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """A prepared set: the task file with all its test questions, and the recipe whose retriever searches for them."""

    recipe: Recipe
    questions: Path


def prepare_set(
    recipe: Recipe, name: str, *, key_file: Path | None = None, say: Say, report: Report = silent
) -> QuestionSet:
    """Prepare the registered data set `name` below `recipe.prepared`.

    The corpus of a set that brings one replaces the recipe's, unless a retriever is given by its address or searches
    the web. Raises ConfigError for a set without questions, and DataError for one that can not be fetched or decrypted.
    """
    data_set = DATA_SETS[name]
    if data_set.rows is None:
        raise ConfigError(f"the data set {name} has no questions", remedy="name another; see s3-agent datasets")
    folder = recipe.prepared / "evaluation" / file_name(name)
    questions = folder / "questions"
    brings_corpus = data_set.corpus is not None and recipe.serves_corpus
    given = recipe.data.sources or SourceSettings()
    sources = SourceSettings(
        corpus=name if brings_corpus else None,
        train=(),
        test=(name,),
        revision=given.revision,
        github_raw=given.github_raw,
        sample=None,
        key_file=key_file or given.key_file,
    )
    files = {"train": questions / "train.jsonl", "validation": questions / "validation.jsonl"}
    if brings_corpus:
        files["corpus"] = folder / "corpus.jsonl"
    prepared = recipe.model_copy(
        update={"data": recipe.data.model_copy(update={**files, "folder": folder, "sources": sources})}
    )
    if brings_corpus:
        index = folder / f"index-{recipe.retriever.index.kind}"
        prepared = prepared.model_copy(update={"retriever": recipe.retriever.model_copy(update={"folder": index})})
    ledger = Ledger(folder)
    stages = DataStages(prepared, ledger)
    if ledger.read("questions") is None:
        sources.require_keys()
    wanted = {stage.name: stage for stage in stages.all()}

    def run(*names: str) -> None:
        run_stages(ledger, [wanted[name] for name in names], say=say, report=report, dry_run=False)

    try:
        stages.downloads.files()
        run("download")
    except DataError as cause:
        raise DataError(
            f"the data set {name} is not prepared in {folder}, and it can not be fetched: {cause.message}",
            remedy=f"{cause.remedy}; without a network: {_OFFLINE}",
        ) from cause
    run("questions", *(("corpus", "index") if brings_corpus else ()))
    return QuestionSet(recipe=prepared if brings_corpus else recipe, questions=files["validation"])
