"""Converts questions into tasks, and records what is dropped, by reason and by id.

Nothing is dropped silently: every filter of the published pipeline reports what it removed.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from retrieval_server.passages import read_id, whole_text
from s3_agent.data.evidence import evidence_in
from s3_agent.data.files.tables import Placed, Row
from s3_agent.data.golds import golds_in, ground_truth, nested_question
from s3_agent.data.options import golds_of_options, options_of, with_options
from s3_agent.errors import DataError
from s3_agent.questions import normalize_question
from s3_agent.rewards.answer_match import can_match
from s3_agent.types import prompt_text

SHOWN = 5
QUESTION_NAMES = ("question", "query", "input")
GOLD_NAMES = (
    *("golden_answers", "answers", "answer", "gold_ans", "gold_answer", "possible_answers", "answers_spans"),
    *("output", "answerkey", "answer_idx", "ground_truth", "target"),
)
ALIAS_NAMES = ("answer_aliases", "aliases")
ID_NAMES = ("id", "_id", "qid", "question_id", "questionid", "query_id", "q_id")
REGULAR_EXPRESSIONS = frozenset({"curatedtrec"})
"""Data sets whose golds are regular expressions."""
_PATTERN = re.compile(r"\\[sdwbSDWB](?![a-z])|\\\.|\.[*+]|\(\?[:=!<iP]")
_LISTED = "a question needs `question` and one of " + ", ".join(f"`{name}`" for name in GOLD_NAMES[:6])


@dataclass(slots=True)
class Dropped:
    """How many were dropped for which reason, and the first few by id."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        """One more."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        shown = self.examples.setdefault(reason, [])
        if len(shown) < SHOWN:
            shown.append(name)

    def report(self) -> dict[str, Any]:
        """The form that a manifest records."""
        return {reason: {"count": count, "first": self.examples[reason]} for reason, count in self.counts.items()}

    def text(self) -> str:
        """For people."""
        return ", ".join(f"{count} {reason}" for reason, count in self.counts.items()) or "nothing"


def usable(
    rows: Iterable[Placed], dropped: Dropped, *, places: dict[str, str] | None = None, by_evidence: bool = False
) -> Iterator[Row]:
    """Task rows that can be scored, each id once. Rows with golds that no answer can match and repeated rows are
    dropped. With `by_evidence`, rows that have no golds but evidence are kept: what is found for them can be scored.

    The place of each id is added to `places`. PopQA has some questions twice with different golds; ids distinguish
    them. Raises DataError for an id with two contents.
    """
    places = {} if places is None else places
    seen: dict[str, tuple[str, tuple[str, ...]]] = {}
    for place, row in rows:
        name, golds = row["id"], tuple(row["golden_answers"])
        content = (row["question"], golds)
        if not row["question"].strip():
            dropped.add("without a question", name)
        elif not (answered := any(gold.strip() for gold in golds)) and not (by_evidence and row.get("evidence")):
            dropped.add("with empty golds", name)
        elif answered and not any(map(can_match, golds)):
            dropped.add("with golds that no answer can match", name)
        elif seen.setdefault(name, content) is not content:
            if seen[name] != content:
                raise DataError(
                    f"{place}: the id {name!r} has another question or other answers in {places[name]}",
                    remedy="give every question a different id",
                )
            dropped.add("repeated", name)
        else:
            places[name] = place
            yield row


def own_questions(rows: Iterable[Placed], *, data_source: str, numbered: str = "") -> Iterator[Placed]:
    """Task rows of a user's questions, in any form that published data sets use (docs/data.md).

    A row without an id gets its number, after the prefix `numbered`. Raises DataError with the place.
    """
    for number, (place, row) in enumerate(_asked(rows)):
        question = read_question(row, place)
        fields = _by_name(row)
        prompt = prompt_text(row["prompt"]) if isinstance(row.get("prompt"), list) else None
        kept = {key: row[key] for key in ("metadata", "supporting_facts_index") if row.get(key) is not None}
        if isinstance(row.get("hops"), int):
            kept["hops"] = row["hops"]
        if row.get("protected"):
            kept["protected"] = row["protected"]
        kept |= _evidence(row, question)
        yield (
            place,
            {
                "id": _id(fields, place) or f"{numbered}{number}",
                **question,
                "data_source": _id(fields, place, ("data_source",)) or data_source,
                **({"prompt": prompt} if prompt is not None else {}),
                **kept,
            },
        )


def _asked(rows: Iterable[Placed]) -> Iterator[Placed]:
    """The rows; SQuAD's release holds articles, which are split into their questions."""
    for place, row in rows:
        paragraphs = row.get("paragraphs")
        if isinstance(paragraphs, list) and "question" not in row:
            yield from ((place, asked) for paragraph in paragraphs for asked in paragraph.get("qas") or [])
        else:
            yield place, row


def flashrag_questions(rows: Iterable[Placed], *, data_source: str) -> Iterator[Placed]:
    """Task rows of one FlashRAG file; ids are unique over sources and splits (docs/originals.md#d9)."""
    if data_source in REGULAR_EXPRESSIONS:
        raise _regular_expressions(data_source)
    for number, (place, row) in enumerate(rows):
        question = read_question(row, place)
        name = _id(_by_name(row), place) or number
        task = {"id": f"{data_source}/{name}", **question, "data_source": data_source}
        yield place, {**task, **_evidence(row, question)}


def _evidence(row: Row, question: Row) -> Row:
    found = evidence_in(row, question["golden_answers"])
    return {} if found is None else {"evidence": found}


def read_question(row: Row, place: str) -> Row:
    """`question` and `golden_answers` of a row, with its options where it has some. Raises DataError with the place."""
    fields = _by_name(row)
    texts = [*(_text(fields.get(name)) for name in QUESTION_NAMES), nested_question(row)]
    question = next(
        (text for text in texts if text and text.strip()), next((text for text in texts if text is not None), None)
    )
    sources = [*(fields[name] for name in GOLD_NAMES if name in fields), ground_truth(row)]
    sources = [value for value in sources if value is not None and value == value]
    lacking = [*(["a question"] if question is None else []), *([] if sources else ["golds"])]
    if question is None or lacking:
        raise DataError(
            f"{place} is not a question: it lacks {' and '.join(lacking)}; it has the fields "
            f"{', '.join(map(repr, row)) or 'none'}",
            remedy=_LISTED,
        )
    try:
        filled = next((value for value in sources if any(gold.strip() for gold in golds_in(value))), [])
        options = options_of(fields)
        golds = golds_of_options(options, filled) if options else golds_in(filled)
        for name in ALIAS_NAMES:
            golds += [gold for gold in golds_in(fields.get(name)) if golds and gold not in golds]
    except ValueError as cause:
        raise DataError(f"{place} is not a question: {cause}", remedy="see the shapes in docs/data.md") from cause
    if any(_PATTERN.search(gold) for gold in golds):
        raise _regular_expressions(place)
    asked = whole_text(question)
    return {"question": with_options(asked, options) if options else asked, "golden_answers": golds}


def _by_name(row: Row) -> Row:
    """The fields of a row under lower-case names: some releases write `Question` and `Answer`."""
    return {**{name.lower(): value for name, value in row.items()}, **row}


def _text(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("text")
    return value if isinstance(value, str) else None


def _id(fields: Row, place: str, names: tuple[str, ...] = ID_NAMES) -> str | None:
    try:
        return read_id(fields, names)
    except ValueError as cause:
        raise DataError(f"{place} is not a question: {cause}", remedy="give texts or numbers as ids") from cause


def _regular_expressions(place: str) -> DataError:
    return DataError(
        f"{place}: the golds are regular expressions, as those of curatedtrec are, and answers are compared as texts",
        remedy="write the answers out, or leave this data set out",
    )


def mirage_questions(benchmark: Any, place: str) -> Iterator[tuple[str, Row]]:
    """Task rows of MIRAGE's benchmark file: options in the question, the gold letter with its text (docs/data.md).

    Raises DataError with the question that has another form.
    """
    if not isinstance(benchmark, dict):
        raise DataError(f"{place} is not MIRAGE's benchmark file", remedy="give its benchmark.json")
    for source, questions in benchmark.items():
        for number, row in questions.items():
            try:
                options, letter = dict(row["options"]), row["answer"]
                task = {
                    "id": f"{source}/{number}",
                    "question": with_options(row["question"], options),
                    "golden_answers": [f"{letter}: {options[letter]}"],
                    "data_source": source,
                }
            except (KeyError, TypeError, ValueError) as cause:
                raise DataError(
                    f"{place}: {source}/{number} is not a question with options: {cause!r}",
                    remedy="give MIRAGE's benchmark.json as it is published",
                ) from cause
            yield f"{place}: {source}/{number}", task


def sampled(rows: Sequence[Row], *, most: int, seed: int, dropped: Dropped) -> list[Row]:
    """The published test sample (docs/data.md): at most `most` rows of each source, then each question once.

    The rows and their order are those of pandas' `sample(n=most, random_state=seed)` for each source.
    """
    import numpy

    sources: dict[str, list[Row]] = {}
    for row in rows:
        sources.setdefault(row["data_source"], []).append(row)
    taken: list[Row] = []
    for group in sources.values():
        if len(group) > most:
            chosen = numpy.random.RandomState(seed).choice(len(group), size=most, replace=False)
            taken += [group[index] for index in chosen]
        else:
            taken += group
    return _once(taken, dropped, key=lambda row: normalize_question(row["question"]))


def _once(rows: Sequence[Row], dropped: Dropped, *, key: Callable[[Row], str]) -> list[Row]:
    seen: set[str] = set()
    kept = []
    for row in rows:
        if (name := key(row)) in seen:
            dropped.add("asked before", row["id"])
        else:
            seen.add(name)
            kept.append(row)
    return kept
