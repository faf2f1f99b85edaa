"""Files that grow by lines: after a full disk or a kill at any byte they hold whole lines alone."""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from s3_agent.data.files.appended import AppendedLines
from s3_agent.data.files.checkpoint import Checkpoint
from s3_agent.errors import DataError
from s3_agent.evaluation.stages import NotKept, Stage, key_of
from s3_agent.rollout.episode_log import EpisodeLog, read_records
from tests.full_disk import cut_short, small_disk, with_small_files

LINES = [b'{"n": 1}\n', b"\n", '{"é": 2}\n'.encode(), b'{"n": 3}\n']
WHOLE = b"".join(LINES)


def record(number: int, **fields: Any) -> dict[str, Any]:
    made = {"rollout_id": f"r{number}", "attempt_id": "a", "attempts": 1, "is_train": True, "state": "failed"}
    return {**made, "started_at": 0.0, "finished_at": float(number), **fields}


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, len(WHOLE)), tail=st.integers(0, 200_000))
def test_what_a_kill_left_of_a_line_is_cut_and_the_next_is_whole(
    tmp_path_factory: pytest.TempPathFactory, cut: int, tail: int
) -> None:
    path = tmp_path_factory.mktemp("lines") / "lines.jsonl"
    torn = WHOLE[:cut] + b"x" * tail
    path.write_bytes(torn)
    kept = torn[: torn.rfind(b"\n") + 1]
    with capture_logs() as logs:
        lines = AppendedLines(path)
    cuts = [(entry["file"], entry["bytes"]) for entry in logs if entry["log_level"] == "warning"]
    assert cuts == ([(str(path), len(torn) - len(kept))] if torn != kept else [])
    assert lines.write(b"new\n") == len(kept)
    lines.close()
    assert path.read_bytes() == kept + b"new\n"


def test_half_a_line_of_a_process_that_was_killed_beside_us_is_cut_too(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    lines = AppendedLines(path)
    lines.write(b"first\n")
    beside = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(beside, b"half of a li")  # killed inside of its write
    os.close(beside)
    with capture_logs() as logs:
        assert lines.write(b"second\n") == len(b"first\n")
    lines.close()
    assert path.read_bytes() == b"first\nsecond\n"
    assert [entry["bytes"] for entry in logs] == [12]


@pytest.mark.parametrize("after", [0, 1, 7, 8])
def test_a_line_that_did_not_fit_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    lines = AppendedLines(tmp_path / "lines.jsonl")
    lines.write(b"first\n")
    room = cut_short(monkeypatch, after=after)
    with pytest.raises(DataError, match="can not be written: No space left") as caught:
        lines.write(b"the second\n")
    assert "lines.jsonl" in caught.value.message and "make room" in caught.value.remedy
    room()
    lines.write(b"third\n")
    assert lines.path.read_bytes() == b"first\nthird\n"


def test_an_episode_without_room_waits_and_is_written_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "episodes.jsonl"
    log = EpisodeLog(str(path))
    log.write(record(0))
    room = cut_short(monkeypatch, after=20)
    for number in (1, 2):
        with pytest.raises(DataError):
            log.write(record(number))
    assert log.waiting == 2
    room()
    log.write(record(3))
    log.close()
    assert [each.rollout_id for each in read_records(path)] == ["r0", "r1", "r2", "r3"]


def test_an_episode_that_never_had_room_is_told_when_the_log_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EpisodeLog(str(tmp_path / "episodes.jsonl"))
    cut_short(monkeypatch, after=20)
    with pytest.raises(DataError):
        log.write(record(0))
    with pytest.raises(DataError, match=r"episodes\.jsonl"):
        log.close()


def test_a_restarted_pool_appends_behind_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    whole = json.dumps(record(0)) + "\n"
    path.write_text(whole + '{"rollout_id": "r1", "atte')
    log = EpisodeLog(str(path))
    log.write(record(2))
    log.close()
    assert [each.rollout_id for each in read_records(path)] == ["r0", "r2"]


@pytest.mark.parametrize(
    "line", ['{"rollout_id": "r1", "a{"rollout_id": "r2"}', "\0\0\0", '{"rollout_id": "r1"}', "[]"]
)
def test_a_reader_names_file_and_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "episodes.jsonl"
    path.write_text(json.dumps(record(0)) + "\n" + line + "\n")
    with pytest.raises(DataError, match=r"episodes\.jsonl:2 is not a record"):
        read_records(path)


def test_an_answer_without_room_is_asked_again_and_the_others_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_of = {"corpus": "c"}
    with Checkpoint(tmp_path / "cache.json", made_of=made_of) as checkpoint:
        checkpoint.add("a", {"answer": "é"})
        room = cut_short(monkeypatch, after=9)
        with pytest.raises(DataError):
            checkpoint.add("b", {"answer": "torn"})
        room()
        checkpoint.add("c", {"answer": "after"})
    with Checkpoint(tmp_path / "cache.json", made_of=made_of) as checkpoint:
        assert list(checkpoint.ids) == ["a", "c"]
        assert [row["answer"] for row in checkpoint.rows(["c", "a"])] == ["after", "é"]


def test_a_line_of_kept_answers_that_is_none_is_named(tmp_path: Path) -> None:
    with Checkpoint(tmp_path / "cache.json", made_of={}) as checkpoint:
        checkpoint.add("a", {})
    with (tmp_path / "cache.json.partial.jsonl").open("a") as file:
        file.write("torn{}\n")
    with pytest.raises(DataError, match=r"partial\.jsonl:3"), Checkpoint(tmp_path / "cache.json", made_of={}):
        pass


async def test_a_stage_of_an_evaluation_keeps_what_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def value() -> dict[str, Any]:
        return {"answer": "x" * 50}

    stage = Stage(tmp_path / "answers.jsonl")
    await stage.once(key_of(1), value)
    room = cut_short(monkeypatch, after=40)
    with pytest.raises(DataError):
        await stage.once(key_of(2), value)
    room()
    await stage.once(key_of(3), value)
    stage.close()
    again = Stage(tmp_path / "answers.jsonl")
    for number in (1, 3):
        assert again.find(key_of(number)) == {"answer": "x" * 50}
    with pytest.raises(NotKept):
        again.find(key_of(2))
    again.close()


def _episodes(folder: Path) -> Callable[[int], None]:
    log = EpisodeLog(str(folder / "episodes.jsonl"))
    return lambda number: log.write(record(number, output="x" * 900))


def _checkpoint(folder: Path) -> Callable[[int], None]:
    checkpoint = Checkpoint(folder / "cache.json", made_of={}).__enter__()
    return lambda number: checkpoint.add(str(number), {"answer": "x" * 900})


def _stage(folder: Path) -> Callable[[int], None]:
    stage = Stage(folder / "answers.jsonl")

    async def value() -> dict[str, Any]:
        return {"answer": "x" * 900}

    def add(number: int) -> None:
        asyncio.run(stage.once(key_of(number), value))

    return add


def _fill(opened: Callable[[Path], Callable[[int], None]], folder: Path, why: str) -> None:
    """Add lines until there is no room: each one that was taken is there, and nothing else."""
    add = opened(folder)
    written = 0
    with pytest.raises(DataError, match=why):
        for written in range(200):
            add(written)
    assert written > 20
    [file] = folder.iterdir()
    content = file.read_bytes()
    assert content.endswith(b"\n") and len([json.loads(line) for line in content.splitlines()]) >= written


@pytest.mark.parametrize("opened", [_episodes, _checkpoint, _stage])
def test_on_a_disk_that_is_really_full_every_line_is_whole(
    tmp_path: Path, opened: Callable[[Path], Callable[[int], None]]
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        _fill(opened, disk, "No space left")


@pytest.mark.parametrize("opened", [_episodes, _checkpoint, _stage])
def test_where_files_can_not_grow_every_line_is_whole(
    tmp_path: Path, opened: Callable[[Path], Callable[[int], None]]
) -> None:
    (tmp_path / "disk").mkdir()
    with_small_files(_fill, opened, tmp_path / "disk", "No space left|File too large")
