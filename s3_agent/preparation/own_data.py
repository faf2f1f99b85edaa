"""Converts a user's corpus and questions into the input of the other stages, with a recipe that names these files.

Called by `s3-agent data import`.
"""

import random
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from s3_agent.data.corpus.corpora import checked
from s3_agent.data.corpus.documents import passages_of_own
from s3_agent.data.files.tables import Row, read_rows, stem_of
from s3_agent.data.files.whole import write_rows
from s3_agent.data.questions import Dropped, own_questions, usable
from s3_agent.data.tasks import load_tasks
from s3_agent.errors import DataError
from s3_agent.names import recipe_name
from s3_agent.processes.run_folder import write_recipe
from s3_agent.recipe import load_recipe
from s3_agent.rewards.answer_match import can_match

SPLIT_SEED = 0


def _questions(path: Path, name: str, dropped: Dropped, *, numbered: str) -> tuple[list[Row], dict[str, str]]:
    """The questions of a file, and the place of each id."""
    places: dict[str, str] = {}
    placed = own_questions(read_rows(path), data_source=name, numbered=numbered)
    rows = list(usable(placed, dropped, places=places))
    if not rows:
        raise DataError(f"{path} holds no question that can be scored", remedy=f"dropped: {dropped.text()}")
    return rows, places


def _held_out(path: Path, name: str, dropped: Dropped, *, numbered: str, train: dict[str, str]) -> list[Row]:
    rows, places = _questions(path, name, dropped, numbered=numbered)
    if shared := [row["id"] for row in rows if row["id"] in train]:
        raise DataError(
            f"{places[shared[0]]} has the id {shared[0]!r} of {train[shared[0]]}: {len(shared)} ids are in both files",
            remedy="give every question a unique id, or no ids: then rows are numbered by file",
        )
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
    """Write `corpus.jsonl`, `train.jsonl`, `validation.jsonl` and `recipe.yaml` into a folder; yields lines to print.

    The recipe is `base` with these data; it is not written when `base` already names these files. Raises DataError,
    which names the faulty line, and then leaves the existing files unchanged.
    """
    blank: list[str] = []
    made = into / "corpus.jsonl"
    imported = into / "corpus.import.jsonl"
    count = write_rows(imported, checked(lambda: passages_of_own(corpus, words=words, left_out=blank.append), corpus))

    dropped, numbered = Dropped(), stem_of(questions)
    train, places = _questions(questions, into.name, dropped, numbered=f"{numbered}/")
    if validation is not None:
        other = stem_of(validation)
        numbers = f"{other}/" if other != numbered else f"validation/{other}/"
        held_out = _held_out(validation, into.name, dropped, numbered=numbers, train=places)
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
    if odd := [row["id"] for row in (*train, *held_out) if not all(map(can_match, row["golden_answers"]))]:
        yield f"{len(odd)} questions also have a gold answer that no answer can match, the first: {', '.join(odd[:5])}"
    yield f"next: s3-agent data all --recipe {shlex.quote(str(named))}"
