"""Task files: errors name the line; nothing wrong passes in silence."""

import json
from pathlib import Path

import pytest

from s3_agent.data.tasks import load_tasks, read_jsonl, task_rows
from s3_agent.embedded import TRAIN, VALIDATION
from s3_agent.errors import ConfigError, DataError

GOOD = '{"id": "%s", "question": "q", "golden_answers": ["a"]}'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.jsonl"


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_blank_lines_are_skipped(path: Path) -> None:
    assert [task.id for task in load_tasks(write(path, GOOD % 1, "", "  ", GOOD % 2))] == ["1", "2"]


def test_characters_that_unicode_calls_line_ends_stay_in_their_row(path: Path) -> None:
    question = "a\u2028b\u0085c\x0bd"
    write(path, json.dumps({"id": "1", "question": question, "golden_answers": ["a"]}, ensure_ascii=False))
    assert load_tasks(path)[0].question == question


@pytest.mark.parametrize(
    ("line", "problem"), [("{", "is not JSON"), ("[1]", "is not a JSON object"), ("nul", "is not JSON")]
)
def test_a_broken_line_is_named(path: Path, line: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=f"tasks.jsonl:3 {problem}"):
        read_jsonl(write(path, GOOD % 1, "", line, GOOD % 2))


def test_a_bad_task_is_named_by_its_line(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tasks.jsonl:3: not a task row: it lacks `golden_answers`") as caught:
        load_tasks(write(path, GOOD % 1, "", '{"id": "2", "question": "q"}'))
    assert caught.value.remedy


def test_what_import_takes_is_taken(path: Path) -> None:
    path.write_text('\ufeff{"id": 7, "question": "q", "golden_answers": [1500.0, "x"]}\n', encoding="utf-8")
    [task] = load_tasks(path)
    assert (task.id, task.golden_answers) == ("7", ("1500", "x"))
    assert task_rows(path) == [{"id": "7", "question": "q", "golden_answers": ["1500", "x"]}]
    write(path, '{"id": 1, "question": "q", "golden_answers": [null]}')
    with pytest.raises(ConfigError, match=r"tasks.jsonl:1: not a task row: a gold answer is null"):
        load_tasks(path)


def test_a_pointer_of_git_lfs_is_named(path: Path) -> None:
    write(path, "version https://git-lfs.github.com/spec/v1", "oid sha256:0", "size 9")
    with pytest.raises(DataError, match="is a git-lfs pointer"):
        load_tasks(path)


def test_duplicate_ids_are_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match="'2' occurs 3 times"):
        load_tasks(write(path, GOOD % 1, GOOD % 2, GOOD % 2, GOOD % 2))


def test_an_empty_file_is_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no task"):
        load_tasks(write(path, ""))


def test_a_file_that_can_not_be_read_is_named(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tasks\.jsonl can not be read"):
        load_tasks(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"tasks\.jsonl can not be read"):
        load_tasks(path)


@pytest.mark.parametrize("shipped", [TRAIN, VALIDATION], ids=["train", "validation"])
def test_the_embedded_tasks_load(shipped: Path) -> None:
    assert len(load_tasks(shipped)) > 200
