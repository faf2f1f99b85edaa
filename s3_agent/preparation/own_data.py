"""Converts a user's corpus and questions into the input of the other stages, with a recipe that names these files.

Called by `s3-agent data import`.
"""

import random
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from s3_agent.data.corpus.corpora import checked
from s3_agent.data.corpus.documents import passages_of_own
from s3_agent.data.files.tables import Placed, Row, read_rows, stem_of
from s3_agent.data.files.whole import keep_private, write_rows
from s3_agent.data.questions import Dropped, own_questions, usable
from s3_agent.data.tasks import load_tasks
from s3_agent.data.trec import evidence_of, holds_topics, read_qrels, read_topics
from s3_agent.errors import DataError
from s3_agent.names import recipe_name
from s3_agent.processes.run_folder import write_recipe
from s3_agent.recipe import load_recipe
from s3_agent.rewards.answer_match import can_match

SPLIT_SEED = 0


class _Judged:
    """The qrels of the questions, and the passages of each document that was split."""

    def __init__(self, path: Path | None) -> None:
        self.qrels = {} if path is None else read_qrels(path)
        self._pieces: dict[str, list[str]] = {}

    def passages(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The passages as they are, noted."""
        for row in rows:
            if (document := row.get("document")) is not None:
                self._pieces.setdefault(document, []).append(row["id"])
            yield row

    def with_evidence(self, row: Row) -> Row:
        """A question with its evidence, by the qrels or its own, whose split documents have their pieces."""
        if grades := self.qrels.get(row["id"]):
            return {**row, "evidence": evidence_of(grades, self._pieces)}
        evidence = [
            {**one, "pieces": pieces} if (pieces := self._pieces.get(one.get("id", ""))) else one
            for one in row.get("evidence") or []
        ]
        return {**row, "evidence": evidence} if evidence else row


def _asked(path: Path, name: str, *, numbered: str, topics: bool) -> Iterator[Placed]:
    """Questions in any form; TREC topics only where there are qrels for them."""
    if topics and holds_topics(path):
        for number, (topic, question) in enumerate(read_topics(path), 1):
            yield (
                f"{path}: topic {number}",
                {"id": topic, "question": question, "golden_answers": [], "data_source": name},
            )
        return
    yield from own_questions(read_rows(path), data_source=name, numbered=numbered)


def _questions(
    path: Path, name: str, dropped: Dropped, *, numbered: str, judged: _Judged
) -> tuple[list[Row], dict[str, str]]:
    """The questions of a file, and the place of each id."""
    places: dict[str, str] = {}
    asked = _asked(path, name, numbered=numbered, topics=bool(judged.qrels))
    placed = ((place, judged.with_evidence(row)) for place, row in asked)
    rows = list(usable(placed, dropped, places=places, by_evidence=True))
    if not rows:
        raise DataError(f"{path} holds no question that can be scored", remedy=f"dropped: {dropped.text()}")
    return rows, places


def _held_out(
    path: Path, name: str, dropped: Dropped, *, numbered: str, train: dict[str, str], judged: _Judged
) -> list[Row]:
    rows, places = _questions(path, name, dropped, numbered=numbered, judged=judged)
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
    qrels: Path | None = None,
) -> Iterator[str]:
    """Write `corpus.jsonl`, `train.jsonl`, `validation.jsonl` and `recipe.yaml` into a folder; yields lines to print.

    With `qrels` the questions get their evidence, and may be TREC topics. The recipe is `base` with these data; it is
    not written when `base` already names these files. Only the owner can enter a folder with protected questions.
    Raises DataError, which names the faulty line, and then leaves the existing files unchanged.
    """
    blank: list[str] = []
    made = into / "corpus.jsonl"
    imported = into / "corpus.import.jsonl"
    judged = _Judged(qrels)
    passages = checked(lambda: passages_of_own(corpus, words=words, left_out=blank.append), corpus)
    count = write_rows(imported, judged.passages(passages))

    dropped, numbered = Dropped(), stem_of(questions)
    train, places = _questions(questions, into.name, dropped, numbered=f"{numbered}/", judged=judged)
    if validation is not None:
        other = stem_of(validation)
        numbers = f"{other}/" if other != numbered else f"validation/{other}/"
        held_out = _held_out(validation, into.name, dropped, numbered=numbers, train=places, judged=judged)
    else:
        shuffled = random.Random(SPLIT_SEED).sample(train, len(train))
        size = max(1, round(len(train) * validation_share))
        held_out, train = shuffled[:size], shuffled[size:]
    private = any(row.get("protected") for row in (*train, *held_out))
    if private:
        keep_private(into)
    write_rows(into / "train.jsonl", train, private=private)
    write_rows(into / "validation.jsonl", held_out, private=private)
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
    if private:
        yield f"the questions may not be published in plain text: only you can read {into}"
    if blank:
        yield f"left out {len(blank)} without text, the first: {', '.join(blank[:5])}"
    if dropped.counts:
        yield f"dropped questions: {dropped.text()}"
    if with_evidence := sum("evidence" in row for row in (*train, *held_out)):
        yield f"{with_evidence} questions name the documents that they need"
    if odd := [row["id"] for row in (*train, *held_out) if not all(map(can_match, row["golden_answers"]))]:
        yield f"{len(odd)} questions also have a gold answer that no answer can match, the first: {', '.join(odd[:5])}"
    yield f"next: s3-agent data all --recipe {shlex.quote(str(named))}"
