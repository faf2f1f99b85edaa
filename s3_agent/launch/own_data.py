"""Somebody's own corpus and questions, made into what the other stages take, with a recipe that names them."""

import random
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from s3_agent.data.corpora import check_corpus, passages_of
from s3_agent.data.documents import passages_of_folder
from s3_agent.data.files import write_rows
from s3_agent.data.questions import Dropped, own_questions, usable
from s3_agent.data.splitting import Splitter
from s3_agent.data.tables import Row, read_rows
from s3_agent.data.tasks import load_tasks
from s3_agent.errors import DataError
from s3_agent.launch.run import write_recipe
from s3_agent.names import recipe_name
from s3_agent.recipe import load_recipe

SPLIT_SEED = 0


def _questions(path: Path, name: str, dropped: Dropped) -> list[Row]:
    rows = list(usable(own_questions(read_rows(path), data_source=name), dropped))
    if not rows:
        raise DataError(f"{path} holds no question that can be scored", remedy=f"dropped: {dropped.text()}")
    return rows


def import_own(
    corpus: Path,
    questions: Path,
    into: Path,
    *,
    validation: Path | None,
    validation_share: float,
    words: int,
    base: str,
    overrides: Sequence[str],
) -> Iterator[str]:
    """Write `corpus.jsonl`, `train.jsonl`, `validation.jsonl` and `recipe.yaml` into a folder; yields what to tell.

    The recipe is `base` with these data; none is written when `base` names these files already. Raises DataError with
    the line at fault, and leaves what was there before.
    """
    blank: list[str] = []
    if corpus.is_dir():
        passages = passages_of_folder(corpus, words=words, left_out=blank.append)
    else:
        passages = passages_of(read_rows(corpus), splitter=Splitter(words), left_out=blank.append)
    made = into / "corpus.jsonl"
    imported = into / "corpus.import.jsonl"
    write_rows(imported, passages)
    count = check_corpus(imported)

    dropped = Dropped()
    train = _questions(questions, into.name, dropped)
    if validation is not None:
        held_out = _questions(validation, into.name, dropped)
    else:
        shuffled = random.Random(SPLIT_SEED).sample(train, len(train))
        size = max(1, round(len(train) * validation_share))
        held_out, train = shuffled[:size], shuffled[size:]
    write_rows(into / "train.jsonl", train)
    write_rows(into / "validation.jsonl", held_out)
    for name in ("train.jsonl", "validation.jsonl"):
        load_tasks(into / name)
    imported.replace(made)

    recipe = load_recipe(base, overrides)
    own = {
        "corpus": made,
        "train": into / "train.jsonl",
        "validation": into / "validation.jsonl",
        "rag_cache": into / "rag_cache.json",
        "folder": into,
        "sources": None,
    }
    named = Path(base)
    if any(getattr(recipe.data, field) != value for field, value in own.items()):
        recipe = recipe.model_copy(update={"name": recipe_name(into), "data": recipe.data.model_copy(update=own)})
        named = into / "recipe.yaml"
        write_recipe(named, recipe)
    yield f"{count} passages, {len(train)} questions to train on, {len(held_out)} to validate on: {into}"
    if blank:
        yield f"left out {len(blank)} without text, the first: {', '.join(blank[:5])}"
    if dropped.counts:
        yield f"dropped questions: {dropped.text()}"
    yield f"next: s3-agent data all --recipe {shlex.quote(str(named))}"
