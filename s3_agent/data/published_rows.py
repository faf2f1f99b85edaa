"""The rows in which s3 and Search-R1 publish their data (spec §5.2), to task rows and back, nothing lost.

A task row says what a task is. Whatever a published row holds beyond what follows from the task is kept beside it under
`published`, and put back when rows are written, so the round trip is equal field by field whatever the columns.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from s3_agent.data.files import partial_of, room_kept
from s3_agent.data.tables import Placed, Row
from s3_agent.errors import DataError


class Form(StrEnum):
    """Whose rows: s3's ground truth holds the question, Search-R1's only the target."""

    S3 = "s3"
    SEARCH_R1 = "search-r1"


ABILITY = "fact-reasoning"
LEFT = "published"


def plain(value: Any) -> Any:
    """Lists and numbers of Python in place of NumPy's, which pandas makes of Parquet."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _target(row: Row) -> Any:
    """The golds: what is scored where the row says it, else its own column."""
    model = row.get("reward_model")
    truth = model.get("ground_truth") if isinstance(model, dict) else None
    target = truth.get("target") if isinstance(truth, dict) else None
    golds = row.get("golden_answers") if target is None else target
    return [golds] if isinstance(golds, str) else golds


def _question(row: Row) -> Any:
    if isinstance(row.get("question"), str):
        return row["question"]
    model = row.get("reward_model")
    truth = model.get("ground_truth") if isinstance(model, dict) else None
    return truth.get("question") if isinstance(truth, dict) else None


def _prompt(row: Row) -> str | None:
    """The text of a prompt that is one user message; others are only kept."""
    prompt = row.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], dict):
        [message] = prompt
        if message.get("role") == "user" and isinstance(message.get("content"), str):
            return message["content"]
    return None


def _follows(task: Row, form: Form) -> Row:
    """The published row as far as it follows from a task row."""
    golds, question = list(task["golden_answers"]), task["question"]
    truth = {"question": question, "target": golds, "gt_docs": []} if form is Form.S3 else {"target": golds}
    row = {
        "id": task["id"].removeprefix(f"{task['data_source']}/"),
        "question": question,
        "golden_answers": golds,
        "data_source": task["data_source"],
        "ability": ABILITY,
        "reward_model": {"style": "rule", "ground_truth": truth},
    }
    if task.get("prompt") is not None:
        row["prompt"] = [{"role": "user", "content": task["prompt"]}]
    return row


def form_of(row: Row) -> Form:
    """Whose row it is: s3's ground truth holds the question."""
    model = row.get("reward_model")
    truth = model.get("ground_truth") if isinstance(model, dict) else None
    return Form.SEARCH_R1 if isinstance(truth, dict) and "question" not in truth else Form.S3


def to_task(row: Row, place: str) -> Row:
    """A task row; its id is `data_source/id`. Raises DataError for a row without a question, golds or an id."""
    row = plain(row)
    source, question, golds = str(row.get("data_source") or "unknown"), _question(row), _target(row)
    extra = row.get("extra_info")
    name = row.get("id") if row.get("id") is not None else extra.get("index") if isinstance(extra, dict) else None
    if question is None or not isinstance(golds, list) or name is None:
        raise DataError(
            f"{place} is no published row: it has the fields {', '.join(map(repr, row))}",
            remedy="a row has `question`, `golden_answers` or `reward_model`, and `id` or `extra_info.index`",
        )
    task: Row = {
        "id": f"{source}/{name}",
        "question": question,
        "golden_answers": [str(gold) for gold in golds],
        "data_source": source,
    }
    if (prompt := _prompt(row)) is not None:
        task["prompt"] = prompt
    form = form_of(row)
    follows = _follows(task, form)
    left: Row = {key: value for key, value in row.items() if key not in follows or follows[key] != value}
    kept: Row = {"form": form, "columns": list(row)}
    if left:
        kept["fields"] = left
    return {**task, LEFT: kept}


def to_published(task: Row, *, form: Form | None = None, split: str, index: int) -> Row:
    """The published row of a task row: as it came, or in `form`, of a `split` at an `index`, where it never was one."""
    kept = task.get(LEFT) or {}
    follows = _follows(task, form or Form(kept.get("form", Form.S3)))
    if not kept:
        return {**follows, "extra_info": {"split": split, "index": index}}
    fields = kept.get("fields", {})
    return {key: fields[key] if key in fields else follows[key] for key in kept["columns"]}


def tasks_of(rows: Iterable[Placed]) -> Iterator[tuple[str, Row]]:
    """Task rows of published rows, with their places."""
    return ((place, to_task(row, place)) for place, row in rows)


def write_parquet(path: Path, rows: Sequence[Row]) -> None:
    """Write published rows, in one piece. Raises DataError for columns of mixed types and for a full disk."""
    import pyarrow
    import pyarrow.parquet

    columns = list(dict.fromkeys(key for row in rows for key in row))
    try:
        table = pyarrow.table({key: pyarrow.array([row.get(key) for row in rows]) for key in columns})
    except (pyarrow.ArrowException, TypeError) as cause:
        raise DataError(
            f"{path}: a column mixes types: {cause}", remedy="write the sources to files of their own"
        ) from cause
    with room_kept(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(table, partial_of(path))
        partial_of(path).replace(path)
