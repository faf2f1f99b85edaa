"""Reads and writes the two JSON files of the original pipeline: `rag_cache.json` and `*_output_sequences.json`.

Both are keyed by question, so PopQA's questions that occur twice share an entry (docs/originals.md#d7). Here everything
is keyed by id: an entry becomes one answer for each task with that question, and these become one entry again when
written.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from s3_agent.data.files.tables import Row
from s3_agent.data.naive_rag.cache import RagAnswer, RagCache
from s3_agent.errors import DataError
from s3_agent.questions import normalize_question
from s3_agent.types import Passage, Task

_DOC = re.compile(r'Doc (\d+) \(Title: ("[^\n]*?"|.*?)\) ', re.DOTALL)


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise DataError(f"{path} can not be read: {cause}", remedy="give the file as it is published") from cause
    if not isinstance(value, dict) or not all(isinstance(entry, dict) for entry in value.values()):
        raise DataError(f"{path} is not a JSON object of objects", remedy="give the file as it is published")
    return value


def ids_by_question(tasks: Iterable[Task]) -> dict[tuple[str, str], list[str]]:
    """Task ids by (source, normalised question)."""
    found: dict[tuple[str, str], list[str]] = {}
    for task in tasks:
        found.setdefault((task.data_source, normalize_question(task.question)), []).append(task.id)
    return found


def import_rag_cache(path: Path, tasks: Iterable[Task] = ()) -> tuple[RagCache, int]:
    """A published cache, which does not record its inputs; and the number of entries that belong to none of `tasks`.

    Such entries are kept under `source/question`. Raises DataError with the wrong entry.
    """
    ids, strangers = ids_by_question(tasks), 0
    answers: dict[str, RagAnswer] = {}
    for source, entries in _read(path).items():
        for question, entry in entries.items():
            try:
                answer = RagAnswer(question=question, data_source=source, **entry)
            except (TypeError, ValueError) as cause:
                raise DataError(
                    f"{path}: {source}, {question!r} is no cached answer: {cause}",
                    remedy="an entry has `answer`, `score` and `em_score`",
                ) from cause
            known = ids.get((source, normalize_question(question)), [])
            strangers += not known
            for name in known or [f"{source}/{question}"]:
                answers[name] = answer
    return RagCache(fingerprint=None, answers=answers), strangers


def export_rag_cache(cache: RagCache) -> tuple[dict[str, dict[str, Row]], int]:
    """The published form; and how many answers were dropped for another one to the same question of the same source."""
    sources: dict[str, dict[str, Row]] = {}
    lost = 0
    for answer in cache.answers.values():
        entry = answer.model_dump(include={"answer", "score", "em_score"})
        kept = sources.setdefault(answer.data_source, {}).setdefault(answer.question, entry)
        lost += kept != entry
    return sources, lost


def render_contexts(passages: Sequence[Passage]) -> str:
    """`context_with_info` as naive retrieval writes it, with the corpus's title lines unchanged."""
    return "".join(f"Doc {number} (Title: {each.title}) {each.text}\n" for number, each in enumerate(passages, 1))


def split_contexts(text: str) -> list[Passage] | None:
    """The passages of a context, without ids; None if their ends are not certain."""
    marks: list[re.Match[str]] = []
    for match in _DOC.finditer(text):
        if int(match[1]) == len(marks) + 1:
            marks.append(match)
    ends = [*(match.start() for match in marks[1:]), len(text)][: len(marks)]
    passages = [
        Passage(id="", title=match[2], text=text[match.end() : end].removesuffix("\n"))
        for match, end in zip(marks, ends, strict=True)
    ]
    return passages if render_contexts(passages) == text else None


def import_sequences(path: Path, tasks: Iterable[Task], *, data_source: str) -> Iterator[Row]:
    """Retrieved rows of a published file, one for each task with the question.

    A context that can not be split, and an entry's other fields, are kept in `published`. Raises DataError for an entry
    without a context.
    """
    ids = ids_by_question(tasks)
    for question, entry in _read(path).items():
        context = entry.get("context_with_info")
        if not isinstance(context, str):
            raise DataError(f"{path}: {question!r} has no `context_with_info`", remedy="give the file as published")
        passages = split_contexts(context)
        others: Row = {key: value for key, value in entry.items() if key != "context_with_info"}
        row: Row = {"question": question, "passages": [each.model_dump() for each in passages or []]}
        row["published"] = others if passages is not None else {**others, "context_with_info": context}
        for name in ids.get((data_source, normalize_question(question)), [f"{data_source}/{question}"]):
            yield {"id": name, **row}


def export_sequences(rows: Iterable[Row], golds: Mapping[str, Sequence[str]]) -> tuple[dict[str, Row], int]:
    """The published form of retrieved rows, `golds` by id; and how many were dropped for another with that question."""
    entries: dict[str, Row] = {}
    lost = 0
    for row in rows:
        kept = row.get("published")
        if kept is None:
            kept = {"golden_answers": list(golds.get(row["id"], ()))}
        context = render_contexts([Passage.model_validate(each) for each in row["passages"]])
        entry = {"context_with_info": context, **kept}
        entry = {key: entry[key] for key in ("golden_answers", "context_with_info") if key in entry} | entry
        question = row["question"] if "published" in row else normalize_question(row["question"])
        lost += entries.setdefault(question, entry) != entry
    return entries, lost
