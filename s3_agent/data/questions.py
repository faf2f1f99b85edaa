"""Which questions become tasks, and what is dropped on the way, by reason and by name.

Nothing disappears in silence: every filter of the published pipeline (spec §4.4, §5.4) reports what it took.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from s3_agent.agents.base import OPTIONS, normalize_question
from s3_agent.data.tables import Placed, Row
from s3_agent.errors import DataError

SHOWN = 5
GOLD_NAMES = ("golden_answers", "answers", "answer", "gold_ans", "gold_answer")
_LISTED = "a question needs `question` and one of " + ", ".join(f"`{name}`" for name in GOLD_NAMES)


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
        """What a manifest tells of it."""
        return {reason: {"count": count, "first": self.examples[reason]} for reason, count in self.counts.items()}

    def text(self) -> str:
        """For people."""
        return ", ".join(f"{count} {reason}" for reason, count in self.counts.items()) or "nothing"


def usable(rows: Iterable[tuple[str, Row]], dropped: Dropped) -> Iterator[Row]:
    """Task rows that can be scored, each id once: empty golds and repeated rows are dropped.

    PopQA asks some questions twice with other golds: ids tell them apart. Raises DataError for an id with two contents.
    """
    seen: dict[str, tuple[str, tuple[str, ...]]] = {}
    for place, row in rows:
        name, golds = row["id"], tuple(row["golden_answers"])
        content = (row["question"], golds)
        if not row["question"].strip():
            dropped.add("without a question", name)
        elif not any(gold.strip() for gold in golds):
            dropped.add("with empty golds", name)
        elif seen.setdefault(name, content) is not content:
            if seen[name] != content:
                raise DataError(
                    f"{place}: the id {name!r} has another question or other answers before",
                    remedy="give every question an id of its own",
                )
            dropped.add("repeated", name)
        else:
            yield row


def own_questions(rows: Iterable[Placed], *, data_source: str) -> Iterator[tuple[str, Row]]:
    """Task rows of somebody's own questions; a row without an id gets its number. Raises DataError with the place."""
    for number, (place, row) in enumerate(rows):
        golds = next((row[name] for name in GOLD_NAMES if row.get(name) is not None), None)
        if not isinstance(row.get("question"), str) or golds is None:
            raise DataError(
                f"{place} is not a question: it has the fields {', '.join(map(repr, row)) or 'none'}", remedy=_LISTED
            )
        listed = golds if isinstance(golds, list) else [golds]
        name = number if row.get("id") in (None, "") else row["id"]
        kept = {key: row[key] for key in ("hops", "metadata", "supporting_facts_index") if row.get(key) is not None}
        yield (
            place,
            {
                "id": str(name),
                "question": row["question"],
                "golden_answers": [str(gold) for gold in listed],
                "data_source": str(row.get("data_source") or data_source),
                **kept,
            },
        )


def flashrag_questions(rows: Iterable[Placed], *, data_source: str) -> Iterator[tuple[str, Row]]:
    """Task rows of one FlashRAG file; ids are unique over sources and splits (spec §11 D9)."""
    for place, row in rows:
        if not isinstance(row.get("question"), str) or not isinstance(row.get("golden_answers"), list):
            raise DataError(
                f"{place} is not a row of FlashRAG: it has the fields {', '.join(map(repr, row))}",
                remedy="it needs `id`, `question` and `golden_answers`",
            )
        yield (
            place,
            {
                "id": f"{data_source}/{row['id']}",
                "question": row["question"],
                "golden_answers": [str(gold) for gold in row["golden_answers"]],
                "data_source": data_source,
            },
        )


def mirage_questions(benchmark: Any, place: str) -> Iterator[tuple[str, Row]]:
    """Task rows of MIRAGE's benchmark file: options in the question, gold letter with its text (spec §5.2).

    Raises DataError that names the question whose form is another.
    """
    if not isinstance(benchmark, dict):
        raise DataError(f"{place} is not MIRAGE's benchmark file", remedy="give its benchmark.json")
    for source, questions in benchmark.items():
        for number, row in questions.items():
            try:
                options, letter = dict(row["options"]), row["answer"]
                lines = "".join(f"{key}: {text}\n" for key, text in options.items())
                task = {
                    "id": f"{source}/{number}",
                    "question": f"{row['question']}{OPTIONS}\n{lines}",
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
    """The published test sample (spec §5.4): `most` rows of each larger source, then each question once.

    The rows are those that pandas' `sample(n=most, random_state=seed)` takes of each source, in its order.
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
