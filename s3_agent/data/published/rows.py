"""Converts the rows that s3 and Search-R1 publish into task rows and back, without loss.

Fields of a published row that do not follow from the task are kept in the task row under `published`, and restored when
rows are written. So the round trip is equal field by field, whatever the columns.
"""

from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from retrieval_server.passages import read_id
from s3_agent.data.evidence import evidence_in
from s3_agent.data.files.tables import Placed, Row
from s3_agent.data.files.whole import partial_of, room_kept
from s3_agent.data.golds import golds_in, ground_truth, nested_question, plain
from s3_agent.errors import DataError
from s3_agent.types import UNKNOWN_SOURCE, prompt_text


class Form(StrEnum):
    """The project of a row: s3's ground truth holds the question, Search-R1's only the target."""

    S3 = "s3"
    SEARCH_R1 = "search-r1"


ABILITY = "fact-reasoning"
LEFT = "published"
_NEEDED = (
    "a row has `question` or `extra_info.question`, `golden_answers` or `reward_model.ground_truth`, and `id` or "
    "`extra_info.index`"
)


def _target(row: Row) -> Any:
    """The golds: the scored ones if the row holds them, else its own column."""
    truth = ground_truth(row)
    return row.get("golden_answers") if truth is None else truth


def _question(row: Row) -> str | None:
    return row["question"] if isinstance(row.get("question"), str) else nested_question(row)


def _follows(task: Row, form: Form) -> Row:
    """The fields of a published row that follow from a task row."""
    golds, question, source = list(task["golden_answers"]), task["question"], task.get("data_source") or UNKNOWN_SOURCE
    truth = {"question": question, "target": golds, "gt_docs": []} if form is Form.S3 else {"target": golds}
    row = {
        "id": task["id"].removeprefix(f"{source}/"),
        "question": question,
        "golden_answers": golds,
        "data_source": source,
        "ability": ABILITY,
        "reward_model": {"style": "rule", "ground_truth": truth},
    }
    if task.get("prompt") is not None:
        row["prompt"] = [{"role": "user", "content": task["prompt"]}]
    if task.get("evidence") is not None:
        row["evidence"] = task["evidence"]
    return row


def form_of(row: Row) -> Form:
    """The project of a row: s3's ground truth holds the question."""
    model = row.get("reward_model")
    truth = model.get("ground_truth") if isinstance(model, dict) else None
    return Form.SEARCH_R1 if isinstance(truth, dict) and "question" not in truth else Form.S3


def to_task(row: Row, place: str) -> Row:
    """A task row; its id is `data_source/id`. Raises DataError for a row without a question, golds or an id."""
    row = plain(row)
    extra = row.get("extra_info")
    try:
        source = read_id(row, ("data_source",)) or UNKNOWN_SOURCE
        name = read_id(row) or (read_id(extra, ("index",)) if isinstance(extra, dict) else None)
        golds = None if (target := _target(row)) is None else golds_in(target)
    except ValueError as cause:
        raise DataError(f"{place} is no published row: {cause}", remedy=_NEEDED) from cause
    question = _question(row)
    found = {"a question": question, "golds": golds, "an id": name}
    lacking = [what for what, value in found.items() if value is None]
    if question is None or golds is None or name is None:
        raise DataError(
            f"{place} is no published row: it lacks {' and '.join(lacking)}; "
            f"it has the fields {', '.join(map(repr, row)) or 'none'}",
            remedy=_NEEDED,
        )
    task: Row = {
        "id": f"{source}/{name}",
        "question": question,
        "golden_answers": golds,
        "data_source": source,
    }
    if (prompt := prompt_text(row.get("prompt"))) is not None:
        task["prompt"] = prompt
    if (evidence := evidence_in(row, golds)) is not None:
        task["evidence"] = evidence
    form = form_of(row)
    follows = _follows(task, form)
    left: Row = {key: value for key, value in row.items() if key not in follows or follows[key] != value}
    kept: Row = {"form": form, "columns": list(row)}
    if left:
        kept["fields"] = left
    return {**task, LEFT: kept}


def to_published(task: Row, *, form: Form | None = None, split: str, index: int) -> Row:
    """The published row of a task row: the original, or without one a new row in `form` with `split` and `index`."""
    kept = task.get(LEFT) or {}
    follows = _follows(task, form or Form(kept.get("form", Form.S3)))
    if not kept:
        return {**follows, "extra_info": {"split": split, "index": index}}
    fields = kept.get("fields", {})
    return {key: fields[key] if key in fields else follows[key] for key in kept["columns"]}


def tasks_of(rows: Iterable[Placed]) -> Iterator[tuple[str, Row]]:
    """Task rows from published rows, with their places."""
    return ((place, to_task(row, place)) for place, row in rows)


def write_parquet(path: Path, rows: Sequence[Row]) -> None:
    """Write published rows atomically. Raises DataError for columns of mixed types and for a full disk."""
    import pyarrow
    import pyarrow.parquet

    columns = list(dict.fromkeys(key for row in rows for key in row))
    try:
        table = pyarrow.table({key: _column([row.get(key) for row in rows]) for key in columns})
    except (pyarrow.ArrowException, TypeError) as cause:
        raise DataError(f"{path}: a column mixes types: {cause}", remedy="write each source to its own file") from cause
    with room_kept(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(table, partial_of(path))
        partial_of(path).replace(path)


def _column(values: list[Any]) -> Any:
    """A column of a type that every reader accepts, also next to files with more fields: never null or without fields.

    A column of unknown type is text; an object without fields, which Parquet can not hold, is null.
    """
    import pyarrow

    found = pyarrow.array(values)
    known = _known(found.type)
    return found if known == found.type else pyarrow.array(_without_empty(values), type=known)


def _known(kind: Any) -> Any:
    import pyarrow

    if pyarrow.types.is_null(kind):
        return pyarrow.string()
    if pyarrow.types.is_list(kind):
        return pyarrow.list_(_known(kind.value_type))
    if pyarrow.types.is_struct(kind):
        fields = [(field.name, _known(field.type)) for field in kind]
        return pyarrow.struct(fields) if fields else pyarrow.string()
    return kind


def _without_empty(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_empty(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_empty(item) for key, item in value.items()} or None
    return value
