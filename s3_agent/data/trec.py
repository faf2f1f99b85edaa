"""TREC's files: topics and qrels, read and written.

A topic is a question with an id, a qrel says that a document is relevant for one. With qrels, a topic is a task with
evidence; such a task needs no gold answer. Also read: BEIR's forms of both, which many collections have.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from retrieval_server.passages import read_id
from s3_agent.data.evidence import evidence_row
from s3_agent.data.files.tables import Row, read_rows
from s3_agent.data.questions import QUESTION_NAMES
from s3_agent.errors import DataError
from s3_agent.evidence import GoldDocuments
from s3_agent.types import Evidence, Task

Qrels = dict[str, dict[str, int]]
"""For each question the grades of its relevant documents, 1 or more."""

_TABLES = (".jsonl", ".json", ".csv", ".parquet")
_TOPIC = re.compile(r"<top>(.*?)</top>|(<topic\b.*?)</topic>", re.S | re.I)
_NUMBER = re.compile(r"<num>\s*(?:number:)?\s*([^\s<]+)|<topic\b[^>]*\bnumber\s*=\s*[\"']([^\"']+)", re.I)
_TEXT = re.compile(r"<(?:query|title)>\s*(?:topic:)?\s*([^<]+)", re.I)
_QUESTION_NAMES = ("text", "query", "title", "question")
_SPACE = re.compile(r"\s+")
_FORM = "a line of qrels is `question 0 document grade`, separated by spaces or tabs"


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as cause:
        raise DataError(f"{path} can not be read: {cause}", remedy="give a UTF-8 file") from cause
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{path}:{number}", line.rstrip("\r")


def read_qrels(path: Path) -> Qrels:
    """The relevant documents by question; grades of 0 and less are judged and not relevant.

    BEIR's form has a head and three columns. Raises DataError with the wrong line, also for two grades of one pair.
    """
    found: Qrels = {}
    judged: dict[tuple[str, str], int] = {}
    for place, line in _lines(path):
        parts = line.split()
        if parts == ["query-id", "corpus-id", "score"]:
            continue
        if len(parts) not in (3, 4) or not re.fullmatch(r"-?\d+", parts[-1]):
            raise DataError(f"{place} is no qrel: {line[:200]!r}", remedy=_FORM)
        question, document, grade = parts[0], parts[-2], int(parts[-1])
        if judged.setdefault((question, document), grade) != grade:
            raise DataError(
                f"{place}: {document!r} has the grades {judged[question, document]} and {grade} for {question!r}",
                remedy="keep one of the lines",
            )
        if grade > 0:
            found.setdefault(question, {})[document] = grade
    if not found:
        raise DataError(f"{path} has no relevant document", remedy=_FORM)
    return found


def holds_topics(path: Path) -> bool:
    """Whether a file can hold topics and not rows with named fields: a table has them in its first line."""
    if path.suffix in _TABLES:
        return False
    _, head = next(_lines(path), ("", ""))
    return not {*QUESTION_NAMES} & {field.strip().lower() for field in head.split("\t")}


def read_topics(path: Path) -> list[tuple[str, str]]:
    """Ids and questions: lines of `id TAB question`, TREC's `<top>` or `<topic>`, or rows with an id and a text.

    Raises DataError with the place of what is no topic, and for an id that occurs twice.
    """
    topics = [*(_rows(path) if path.suffix in _TABLES else _tagged_or_lines(path))]
    seen: set[str] = set()
    for place, name, _ in topics:
        if name in seen:
            raise DataError(f"{place}: the topic {name!r} occurs twice", remedy="give every topic its own id")
        seen.add(name)
    if not topics:
        raise DataError(f"{path} has no topic", remedy="a line is `id TAB question`")
    return [(name, question) for _, name, question in topics]


def _rows(path: Path) -> Iterator[tuple[str, str, str]]:
    for place, row in read_rows(path):
        name = read_id(row, ("_id", "id", "query_id", "qid", "query-id"))
        question = next(
            (row[key] for key in _QUESTION_NAMES if isinstance(row.get(key), str) and row[key].strip()), None
        )
        if name is None or question is None:
            raise DataError(
                f"{place} is no topic: it has the fields {', '.join(map(repr, row)) or 'none'}",
                remedy="a topic has `id` or `_id`, and `text` or `query`",
            )
        yield place, name, question.strip()


def _tagged_or_lines(path: Path) -> Iterator[tuple[str, str, str]]:
    lines = [*_lines(path)]
    text = "\n".join(line for _, line in lines)
    if "<top" not in text.lower():
        for place, line in lines:
            name, tab, question = line.partition("\t")
            if not (tab and name.strip() and question.strip()):
                raise DataError(f"{place} is no topic: {line[:200]!r}", remedy="a line is `id TAB question`")
            yield place, name.strip(), " ".join(question.split())
        return
    for number, match in enumerate(_TOPIC.finditer(text), 1):
        body = match[1] or match[2]
        name, question = _NUMBER.search(body), _TEXT.search(body)
        if name is None or question is None:
            raise DataError(f"{path}: topic {number} lacks its number or its title", remedy="see TREC's form of topics")
        yield f"{path}: topic {number}", name[1] or name[2], " ".join(question[1].split())


def evidence_of(grades: Mapping[str, int], pieces: Mapping[str, Sequence[str]] | None = None) -> list[Row]:
    """The evidence of a question in the form of a task row; `pieces` are the passages of documents that were split."""
    of = pieces or {}
    return [
        evidence_row(Evidence(id=name, relevance=grade, pieces=tuple(of.get(name, ()))))
        for name, grade in grades.items()
    ]


def topic_rows(topics: Iterable[tuple[str, str]], qrels: Mapping[str, Mapping[str, int]], source: str) -> list[Row]:
    """A task row for each topic that has a relevant document."""
    return [
        {
            "id": name,
            "question": question,
            "golden_answers": [],
            "data_source": source,
            "evidence": evidence_of(qrels[name]),
        }
        for name, question in topics
        if qrels.get(name)
    ]


def with_qrels(rows: Iterable[Row], qrels: Mapping[str, Mapping[str, int]]) -> list[Row]:
    """Task rows with the evidence of the qrels; rows that the qrels do not name keep their own."""
    return [{**row, "evidence": evidence_of(qrels[row["id"]])} if qrels.get(row["id"]) else row for row in rows]


def token(text: str) -> str:
    """A text as one column of a TREC file, where spaces separate: each run of white space is an underscore."""
    return _SPACE.sub("_", text.strip())


def topic_lines(tasks: Iterable[Task]) -> list[str]:
    """Lines of `id TAB question`. Raises DataError for two ids that a TREC file can not tell apart."""
    seen: dict[str, str] = {}
    lines: list[str] = []
    for task in tasks:
        if (other := seen.setdefault(token(task.id), task.id)) != task.id:
            raise DataError(f"the ids {other!r} and {task.id!r} are the same in a TREC file", remedy="change one")
        lines.append(f"{token(task.id)}\t{' '.join(task.question.split())}")
    return lines


def qrel_lines(tasks: Iterable[Task], *, answers: bool = False) -> list[str]:
    """Lines of qrels by the ids or else the titles of the evidence; with `answers` only what holds the answer."""
    lines: list[str] = []
    for task in tasks:
        gold = GoldDocuments(task.evidence or ())
        for name in gold.answers if answers else gold.names:
            lines.append(f"{token(task.id)} 0 {token(name)} {gold.relevance[name]}")
    return lines
