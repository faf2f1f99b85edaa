"""Files that survive a kill at any byte, and stages that know when they are done."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3_agent.data.files.stages import Ledger, Need, Stage, check_room, run_stages
from s3_agent.data.files.whole import (
    Report,
    cut_torn_line,
    grow_rows,
    join_parts,
    partial_of,
    silent,
    write_rows,
    write_whole,
    written_whole,
)
from s3_agent.embedded import CORPUS, TRAIN, VALIDATION
from s3_agent.errors import DataError, S3AgentError
from s3_agent.evaluation.report.render import write_report
from s3_agent.preparation.stages import DataStages
from s3_agent.recipe import load_recipe
from tests.evaluated import write_run
from tests.full_disk import with_small_files

ROWS = [{"id": str(number), "text": "é\u2028" * number} for number in range(20)]
WHOLE = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, len(WHOLE)))
def test_rows_go_on_behind_any_cut(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    with pytest.raises(KeyboardInterrupt):
        grow_rows(path, _interrupted(), made_of={"a": 1}, report=silent)
    partial_of(path).write_bytes(WHOLE[:cut])
    assert grow_rows(path, iter(ROWS), made_of={"a": 1}, report=silent) == len(ROWS)
    assert path.read_bytes() == WHOLE
    assert [entry.name for entry in path.parent.iterdir()] == ["rows.jsonl"]


def _interrupted() -> Any:
    yield ROWS[0]
    raise KeyboardInterrupt


def test_rows_begun_of_something_else_are_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with pytest.raises(KeyboardInterrupt):
        grow_rows(path, _interrupted(), made_of={"a": 1}, report=silent)
    partial_of(path).write_bytes(b"other\n" * 30)
    grow_rows(path, iter(ROWS), made_of={"a": 2}, report=silent)
    assert path.read_bytes() == WHOLE


@settings(max_examples=40, deadline=None)
@given(parts=st.lists(st.binary(max_size=9), max_size=4), cut=st.integers(0, 40))
def test_parts_are_joined_from_any_cut(tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], cut: int) -> None:
    folder = tmp_path_factory.mktemp("parts")
    paths = [folder / str(number) for number in range(len(parts))]
    for path, content in zip(paths, parts, strict=True):
        path.write_bytes(content)
    whole, joined = b"".join(parts), folder / "joined"
    (folder / "joined.made-of").write_text('{"a": 1}')
    partial_of(joined).write_bytes(whole[:cut])
    assert join_parts(joined, paths, made_of={"a": 1}, report=silent) == len(whole)
    assert joined.read_bytes() == whole


def test_a_torn_line_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    assert cut_torn_line(path) == 0
    path.write_bytes(b"a\nb\nc")
    assert cut_torn_line(path) == 2
    assert path.read_bytes() == b"a\nb\n"
    path.write_bytes(b"abc")
    assert (cut_torn_line(path), path.read_bytes()) == (0, b"")


FULL = """
import resource, sys
from pathlib import Path
from s3_agent.data.files.whole import grow_rows, silent
from s3_agent.errors import DataError
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    grow_rows(Path(sys.argv[1]), ({"n": n} for n in range(1000)), made_of={}, report=silent)
except DataError as error:
    sys.exit(str(error))
"""


def test_a_full_disk_keeps_what_was_written_and_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    ended = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "can not be written: File too large" in ended.stderr and "finished work is kept" in ended.stderr
    kept = cut_torn_line(partial_of(path))
    assert kept > 300
    asked: list[int] = []

    def rows() -> Any:
        for number in range(1000):
            asked.append(number)
            yield {"n": number}

    assert grow_rows(path, rows(), made_of={}, report=silent) == 1000
    assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == list(range(1000))
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 5000


def _whole_text(path: Path) -> None:
    write_whole(path, "new" * 5000)


def _rows(path: Path) -> None:
    write_rows(path, ({"n": number} for number in range(5000)))


def _report(path: Path) -> None:
    write_report([path.parent / "run"], path)


def _results(path: Path) -> None:
    with written_whole(path) as write:
        for _ in range(1000):
            write(b"a result\n")


def _refuse(work: Callable[[Path], None], path: Path) -> None:
    with pytest.raises(DataError, match="can not be written: File too large"):
        work(path)


@pytest.mark.parametrize("work", [_whole_text, _rows, _report, _results])
def test_a_file_that_does_not_fit_leaves_the_old_one_and_no_half(tmp_path: Path, work: Callable[[Path], None]) -> None:
    path = tmp_path / "out" / "file.html"
    write_run(path.parent / "run")
    path.write_text("old")
    with_small_files(_refuse, work, path, size=2000)
    assert path.read_text() == "old"
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["file.html", "run"], "no half takes room"


def test_what_fails_beside_the_writing_is_not_called_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError), written_whole(tmp_path / "results.jsonl") as write:
        write(b"a result\n")
        raise ConnectionError(111, "refused")
    assert list(tmp_path.iterdir()) == []


class Worker:
    """A stage that copies its input and counts."""

    def __init__(self, folder: Path, *, need: int = 0) -> None:
        self.source, self.target = folder / "in.txt", folder / "out.txt"
        self.settings: dict[str, Any] = {"n": 1}
        self.count, self._need = 0, need
        self.folder = folder
        self.meanwhile: Callable[[], Any] = lambda: None

    def stage(self) -> Stage:
        def work(_: Any) -> Mapping[str, Any]:
            self.count += 1
            write_rows(self.target, [{"copied": self.source.read_text()}])
            self.meanwhile()
            return {"rows": 1}

        return Stage(
            name="copy",
            made_of=lambda: {**self.settings, "text": self.source.read_text()},
            outputs=lambda: {"out.txt": self.target},
            work=lambda report: dict(work(report)),
            need=lambda: Need(disk={self.folder: self._need}),
            missing=lambda: [] if self.source.exists() else [self.source],
        )

    def run(self, *, verify: bool = False) -> list[str]:
        said: list[str] = []
        ledger = Ledger(self.folder, verify=verify)
        run_stages(ledger, [self.stage()], say=said.append, dry_run=False)
        return said


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    worker = Worker(tmp_path)
    worker.source.write_text("a")
    return worker


def test_a_stage_works_once(worker: Worker) -> None:
    assert worker.run() == ["copy: done (rows 1)"]
    assert worker.run() == ["copy: nothing to do (rows 1)"]
    assert worker.count == 1


def test_a_stage_works_again_when_what_it_is_made_of_changes(worker: Worker) -> None:
    worker.run()
    worker.source.write_text("b")
    worker.run()
    worker.settings["n"] = 2
    worker.run()
    assert worker.count == 3


def test_a_stage_whose_input_changed_while_it_worked_works_again(worker: Worker) -> None:
    worker.meanwhile = lambda: worker.source.write_text("b")
    assert worker.run() == [
        "copy: done (rows 1)",
        "copy: text changed meanwhile; run the same command again for it",
    ]
    worker.meanwhile = lambda: None
    assert worker.run() == ["copy: done (rows 1)"]
    assert json.loads(worker.target.read_text()) == {"copied": "b"}
    assert worker.run() == ["copy: nothing to do (rows 1)"]


@pytest.mark.parametrize("name", ["corpus", "train", "validation"])
def test_a_file_of_the_users_own_that_changed_while_it_was_checked_is_checked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    files = {"corpus": CORPUS, "train": TRAIN, "validation": VALIDATION}
    for file, source in files.items():
        (tmp_path / f"{file}.jsonl").write_bytes(source.read_bytes())
    overrides = [f"data.{file}={tmp_path}/{file}.jsonl" for file in files]
    stages = DataStages(load_recipe("cpu", [*overrides, f"data.folder={tmp_path}/data"]), Ledger(tmp_path / "data"))
    stage = stages.all()[0] if name == "corpus" else stages.questions()
    changed = tmp_path / f"{name}.jsonl"

    def work_and_change(report: Report) -> dict[str, Any]:
        told = stage.work(report)
        changed.write_bytes(changed.read_bytes() + b"not JSON\n")
        return told

    def run(one: Stage) -> list[str]:
        said: list[str] = []
        run_stages(stages.ledger, [one], say=said.append, dry_run=False)
        return said

    assert run(replace(stage, work=work_and_change))[1] == (
        f"{stage.name}: {name} changed meanwhile; run the same command again for it"
    )
    with pytest.raises(S3AgentError, match="JSON"):
        run(stage)


def test_a_stage_works_again_when_its_output_is_gone_or_changed(worker: Worker) -> None:
    worker.run()
    worker.target.unlink()
    worker.run()
    worker.target.write_text("x" * worker.target.stat().st_size)
    worker.run()
    assert worker.count == 3


def test_a_change_that_keeps_size_and_time_is_seen_by_verify(worker: Worker) -> None:
    worker.run()
    stat = worker.target.stat()
    worker.target.write_text("x" * stat.st_size)
    os.utime(worker.target, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    worker.run()
    assert worker.count == 1
    worker.run(verify=True)
    assert worker.count == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 0}'], ids=repr)
def test_a_broken_manifest_is_no_manifest(worker: Worker, content: str) -> None:
    worker.run()
    Ledger(worker.folder).path("copy").write_text(content)
    worker.run()
    assert worker.count == 2


def test_a_stage_without_its_input_says_which(worker: Worker) -> None:
    worker.source.unlink()
    with pytest.raises(DataError, match=r"the stage copy needs .*in\.txt"):
        worker.run()


def test_room_is_counted_by_disk(tmp_path: Path) -> None:
    [(wanted, free)] = check_room([Need(disk={tmp_path / "a": 3, tmp_path / "b": 4})]).values()
    assert wanted == 7 and free > 0
    with pytest.raises(DataError, match="are needed"):
        check_room([Need(disk={tmp_path: 1 << 60})])
