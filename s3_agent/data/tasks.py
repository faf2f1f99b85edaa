"""Reads task files: JSON lines, one task per line; errors name the line."""

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from s3_agent.data.files.whole import refuse_lfs_pointer
from s3_agent.data.golds import golds_in
from s3_agent.errors import ConfigError
from s3_agent.types import Task


def _lines(path: Path) -> Iterator[str]:
    try:
        refuse_lfs_pointer(path)
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            yield from file
    except (OSError, UnicodeDecodeError) as cause:
        raise ConfigError(f"{path} can not be read: {cause}", remedy="give the path of a UTF-8 JSONL file") from cause


def _numbered(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as cause:
            raise ConfigError(f"{path}:{number} is not JSON: {cause}", remedy="one JSON object a line") from cause
        if not isinstance(row, dict):
            raise ConfigError(f"{path}:{number} is not a JSON object", remedy="one JSON object a line")
        yield number, row


def iterate_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSONL file one at a time. Raises ConfigError with the wrong line."""
    return (row for _, row in _numbered(path))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file. Raises ConfigError with the wrong line."""
    return list(iterate_jsonl(path))


def task_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a task file with all their fields, with the id and the golds as texts. Raises ConfigError."""
    return [row for _, row in _numbered_tasks(path)]


def _numbered_tasks(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row in _numbered(path):
        try:
            yield number, _with_texts(row)
        except ValueError as cause:
            raise ConfigError(
                f"{path}:{number}: not a task row: {cause}", remedy="see the shapes in docs/data.md"
            ) from cause


def _with_texts(row: dict[str, Any]) -> dict[str, Any]:
    name, golds = row.get("id"), row.get("golden_answers")
    if isinstance(name, int) and not isinstance(name, bool):
        row = {**row, "id": str(name)}
    if golds is not None and not (isinstance(golds, list) and all(isinstance(gold, str) for gold in golds)):
        row = {**row, "golden_answers": golds_in(golds)}
    return row


def load_tasks(path: Path) -> list[Task]:
    """The tasks of a JSONL file. Raises ConfigError, also for an id that occurs twice."""
    tasks = []
    for number, row in _numbered_tasks(path):
        try:
            tasks.append(Task.from_row(row))
        except ConfigError as cause:
            raise ConfigError(f"{path}:{number}: {cause.message}", remedy=cause.remedy) from cause
    if not tasks:
        raise ConfigError(f"{path} holds no task", remedy="give a file with at least one task")
    [(most_common, count)] = Counter(task.id for task in tasks).most_common(1)
    if count > 1:
        raise ConfigError(f"{path}: id {most_common!r} occurs {count} times", remedy="give every task its own id")
    return tasks


def in_training_order(
    tasks: Sequence[Task], *, steps: int, questions_per_step: int, seed: int | None
) -> Iterator[Task]:
    """The tasks of `steps` steps, step by step, from as many passes over `tasks` as needed, each in a different order.

    `seed=None` keeps the order of the file. No step holds a task twice: a pass drops the rest that does not fill a
    step.
    """
    assert len(tasks) >= questions_per_step
    played = 0
    for number in range(steps):
        order = list(tasks)
        if seed is not None:
            random.Random(f"{seed}/{number}").shuffle(order)
        for start in range(0, len(order) - questions_per_step + 1, questions_per_step):
            if played == steps:
                return
            yield from order[start : start + questions_per_step]
            played += 1
