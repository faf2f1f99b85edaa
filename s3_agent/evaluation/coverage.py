"""Finds out which of the questions' gold documents the corpus has at all.

A document that the corpus lacks can not be found by anyone. A question none of whose documents exist is left out of the
evidence measures, instead of counting 0. The corpus is read once for an evaluation folder; the result is kept there.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from retrieval_server.passages import read_id, read_passage
from s3_agent.data.files.whole import write_whole
from s3_agent.data.tasks import iterate_jsonl
from s3_agent.evaluation.stages import key_of
from s3_agent.evidence import GoldDocuments, plain_title
from s3_agent.types import Evidence, Task

FILE = "coverage.json"


class Coverage(BaseModel):
    """How many questions have evidence, how many different documents it names, and how many of these the corpus has.

    `found` is None if there is no corpus to read, because the retriever is not ours or searches the web; then no
    question is left out.
    `exact` are the titles that the corpus has as they are written, `left_out` the ids of the questions none of whose
    documents exist.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    questions: int = 0
    documents: int = 0
    found: int | None = None
    exact: frozenset[str] = frozenset()
    left_out: frozenset[str] = frozenset()

    def gold(self, task: Task) -> GoldDocuments | None:
        """The gold documents of a task; None if they are unknown, or if the corpus has none of them."""
        if task.evidence is None or task.id in self.left_out:
            return None
        return GoldDocuments(task.evidence, exact=self.exact)

    def report(self) -> dict[str, Any]:
        """The form in which a table reports it."""
        return {
            "questions": self.questions,
            "left_out": len(self.left_out),
            "documents": self.documents,
            "in_corpus": self.found,
        }


def coverage_of(tasks: Sequence[Task], corpus: Path | None) -> Coverage:
    """Read the corpus until every gold document is found. Raises ConfigError for a corpus that can not be read."""
    golds = {task.id: {*map(_name, task.evidence)} for task in tasks if task.evidence}
    wanted = {*chain.from_iterable(golds.values())}
    if corpus is None or not wanted:
        return Coverage(questions=len(golds), documents=len(wanted), found=None if wanted else 0)
    folded = {(kind, name.casefold()): (kind, name) for kind, name in wanted if kind == "title"}
    pieces = {("id", piece): _name(one) for task in tasks for one in task.evidence or () for piece in one.pieces}
    exact, close = set[tuple[str, str]](), set[tuple[str, str]]()
    for found in _names_in(corpus):
        if found in wanted:
            exact.add(found)
            if len(exact) == len(wanted):
                break
        elif gold := pieces.get(found) or folded.get((found[0], found[1].casefold())):
            close.add(gold)
    have = exact | close
    return Coverage(
        questions=len(golds),
        documents=len(wanted),
        found=len(have),
        exact=frozenset(name for kind, name in exact if kind == "title"),
        left_out=frozenset(task for task, names in golds.items() if not names & have),
    )


def kept_coverage(folder: Path, tasks: Sequence[Task], corpus: Path | None, *, identity: Mapping[str, Any]) -> Coverage:
    """The same, kept in the evaluation's folder while the corpus (by its `identity`) and the evidence stay the same."""
    path = folder / FILE
    evidence = {task.id: [one.model_dump(mode="json") for one in task.evidence or ()] for task in tasks}
    key = key_of(dict(identity), evidence, corpus is not None)
    try:
        kept = _Kept.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        kept = None
    if kept is not None and kept.key == key:
        return kept.coverage
    found = coverage_of(tasks, corpus)
    write_whole(path, _Kept(key=key, coverage=found).model_dump_json())
    return found


def read_coverage(folder: Path) -> Coverage:
    """What an evaluation's folder says about its corpus; nothing is left out if it says nothing."""
    try:
        return _Kept.model_validate_json((folder / FILE).read_text(encoding="utf-8")).coverage
    except (OSError, ValidationError):
        return Coverage()


class _Kept(BaseModel):
    key: str
    coverage: Coverage


def _name(one: Evidence) -> tuple[str, str]:
    return ("id", one.id) if one.id else ("title", plain_title(one.title))


def _names_in(corpus: Path) -> Iterator[tuple[str, str]]:
    """The id and the title of each passage. The server numbers passages without an id from 0."""
    for number, row in enumerate(iterate_jsonl(corpus)):
        yield "id", read_id(row) or str(number)
        yield "title", plain_title(read_passage(row).title)
