"""A killed run's folder is brought back to its newest whole checkpoint; nothing whole is deleted."""

import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from s3_agent.errors import ConfigError, LaunchError
from s3_agent.processes.run_folder import Run
from s3_agent.processes.stack import MARKER, scratch_folder
from s3_agent.training.resume import (
    CheckpointBound,
    checkpoint_steps,
    end_leftovers,
    exportable_step,
    latest_step,
    require_ranks,
    rewind,
)

SAVED = 1000.0
LATEST = "latest_checkpointed_iteration.txt"


def saved(path: Path) -> None:
    """A file as torch saves it: a zip archive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", b"weights" * 100)


def cut(path: Path) -> None:
    """What a full disk leaves of a file."""
    path.write_bytes(path.read_bytes()[:-30])


def checkpoint(run: Run, step: int, *, ranks: int = 2) -> Path:
    folder = run.checkpoints / f"global_step_{step}"
    for kind in ("model", "optim", "extra_state"):
        for rank in range(ranks):
            saved(folder / "actor" / f"{kind}_world_size_{ranks}_rank_{rank}.pt")
    saved(folder / "data.pt")
    (run.checkpoints / LATEST).write_text(str(step))
    return folder


@pytest.fixture
def killed(tmp_path: Path) -> Run:
    """A run that was killed in step 3, while its checkpoint was written; the one of step 2 is whole."""
    run = Run(tmp_path / "run")
    run.create()
    run.start_generation("run-aaaa")
    for step in (1, 2):
        checkpoint(run, step)
    saved(run.checkpoints / "global_step_3" / "actor" / "model_world_size_2_rank_0.pt")
    times = {0: SAVED - 50, 1: SAVED - 9, 2: SAVED, 3: SAVED + 9}
    rows = [json.dumps({"step": step, "at": at, "data": {}}) for step, at in times.items()]
    run.metrics.write_text("\n".join(rows) + '\n{"step": 4, "da')
    ends = [("a", SAVED - 9), ("b", SAVED), ("c", SAVED + 5)]
    run.episodes.write_text("".join(json.dumps({"rollout_id": i, "finished_at": t}) + "\n" for i, t in ends))
    (run.logs / "trainer.log").write_text("killed")
    return run


def rollouts(run: Run) -> list[str]:
    return [json.loads(row)["rollout_id"] for row in run.episodes.read_text().splitlines()]


def whole_files(run: Run) -> set[Path]:
    return {path for path in run.folder.rglob("*.pt") if zipfile.is_zipfile(path)}


@pytest.mark.parametrize("marker", ["", "\n", "2", "3", "9", "x", "\0", None], ids=repr)
def test_the_newest_whole_checkpoint_counts_whatever_the_marker_says(killed: Run, marker: str | None) -> None:
    path, before = killed.checkpoints / LATEST, whole_files(killed)
    path.unlink()
    if marker is not None:
        path.write_text(marker)
    assert rewind(killed, keep=None) == 2
    assert checkpoint_steps(killed) == [1, 2]
    assert path.read_text() == "2", "verl goes on from what it names"
    assert {file for file in before if "global_step_3" not in str(file)} == whole_files(killed)
    assert rollouts(killed) == ["a", "b"]


def test_a_checkpoint_that_was_whole_before_the_marker_was_written_counts(killed: Run) -> None:
    checkpoint(killed, 3)
    (killed.checkpoints / LATEST).write_text("2")
    assert rewind(killed, keep=None) == 3
    assert (killed.checkpoints / LATEST).read_text() == "3"
    assert rollouts(killed) == ["a", "b", "c"]


def test_a_kill_between_the_checkpoint_and_the_log_of_its_step_loses_no_record(killed: Run) -> None:
    checkpoint(killed, 3)
    rows = killed.metrics.read_text().splitlines(keepends=True)
    killed.metrics.write_text("".join(rows[:3]))
    assert rewind(killed, keep=None) == 3
    assert rollouts(killed) == ["a", "b", "c"], "no step had begun after it"


@pytest.mark.parametrize(
    "file", ["data.pt", "actor/optim_world_size_2_rank_1.pt", "actor/model_world_size_2_rank_0.pt"]
)
@pytest.mark.parametrize("harm", [Path.unlink, cut, lambda path: path.write_bytes(b"")], ids=["gone", "cut", "empty"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    killed: Run, file: str, harm: Callable[[Path], None]
) -> None:
    harm(killed.checkpoints / "global_step_2" / file)
    assert latest_step(killed) == 1
    assert rewind(killed, keep=2) == 1
    assert (killed.checkpoints / LATEST).read_text() == "1"
    assert rollouts(killed) == ["a"]
    assert (killed.checkpoints / "global_step_1" / "data.pt").exists()
    moved = killed.folder / "generation-0" / "checkpoints" / "global_step_2" / "actor"
    assert moved.exists() == ("model" not in file), "where its policy is whole, it is kept"


@pytest.mark.parametrize("file", ["data.pt", "actor/optim_world_size_2_rank_1.pt"])
def test_policies_that_no_run_can_go_on_from_are_not_deleted(killed: Run, file: str) -> None:
    for step in (1, 2):
        cut(killed.checkpoints / f"global_step_{step}" / file)
    before = sorted(killed.folder.rglob("*"))
    with pytest.raises(LaunchError, match=r"no checkpoint in .* is complete") as caught:
        rewind(killed, keep=1)
    assert "export-policy" in caught.value.remedy and "--step 2" in caught.value.remedy
    assert sorted(killed.folder.rglob("*")) == before
    assert exportable_step(killed) == 2


@pytest.mark.parametrize("ranks", [1, 4])
def test_a_checkpoint_of_another_number_of_gpus_is_refused_before_anything_starts(killed: Run, ranks: int) -> None:
    before = sorted(killed.folder.rglob("*"))
    with pytest.raises(ConfigError, match=f"step 2 was written by 2 ranks, .* asks for {ranks}") as caught:
        require_ranks(killed, ranks)
    assert "trainer.gpus" in caught.value.remedy
    assert sorted(killed.folder.rglob("*")) == before
    require_ranks(killed, 2)


def test_a_run_without_a_checkpoint_may_begin_again_on_any_number_of_gpus(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.create()
    assert latest_step(run) == 0
    require_ranks(run, 4)


def test_a_checkpoint_of_another_engine_is_never_deleted(killed: Run) -> None:
    other = killed.checkpoints / "global_step_2" / "actor"
    shutil.rmtree(other)
    (other / "dist_ckpt").mkdir(parents=True)
    (other / "dist_ckpt" / "weights.distcp").write_bytes(b"weights")
    assert rewind(killed, keep=None) == 2
    (killed.checkpoints / "global_step_2" / "data.pt").unlink()
    assert rewind(killed, keep=None) == 1
    assert (killed.folder / "generation-0" / "checkpoints" / "global_step_2" / "actor" / "dist_ckpt").is_dir()


def test_a_copy_counts_what_its_original_counted(killed: Run, tmp_path: Path) -> None:
    copy = Run(tmp_path / "copy")
    shutil.copytree(killed.folder, copy.folder)  # every file has the time of the copy or of its original
    for path in copy.folder.rglob("*"):
        os.utime(path, (SAVED + 500, SAVED + 500))
    assert rewind(copy, keep=None) == rewind(killed, keep=None) == 2
    assert rollouts(copy) == rollouts(killed) == ["a", "b"]


def test_records_that_can_not_be_read_are_named_and_nothing_is_changed(killed: Run) -> None:
    with killed.episodes.open("a") as file:
        file.write('{"rollout_id": "d", "fini{"rollout_id": "e", "finished_at": 1}\n')
    before = sorted(killed.folder.rglob("*"))
    with pytest.raises(LaunchError, match=r"episodes\.jsonl:4"):
        rewind(killed, keep=None)
    assert sorted(killed.folder.rglob("*")) == before


def test_a_run_without_times_is_refused_and_nothing_is_changed(killed: Run) -> None:
    killed.metrics.write_text('{"step": 2, "data": {}}\n')
    before = sorted(killed.folder.rglob("*"))
    with pytest.raises(LaunchError, match="step 2 has no time"):
        rewind(killed, keep=None)
    assert sorted(killed.folder.rglob("*")) == before


def test_only_what_came_before_the_checkpoint_counts(killed: Run) -> None:
    killed.summary.write_text('{"steps": 3}')
    assert rewind(killed, keep=None) == 2
    assert [json.loads(row)["step"] for row in killed.metrics.read_text().splitlines()] == [0, 1, 2]
    assert rollouts(killed) == ["a", "b"]
    assert checkpoint_steps(killed) == [1, 2], "the one that was cut short is gone"
    before = killed.folder / "generation-0"
    assert len((before / "episodes.jsonl").read_text().splitlines()) == 3
    assert (before / "logs" / "trainer.log").read_text() == "killed"
    assert (before / "summary.json").exists() and not killed.finished, "a run that is given more steps is not done"
    assert list(killed.logs.iterdir()) == []


def test_logs_are_for_the_user_alone(killed: Run) -> None:
    assert stat.S_IMODE(killed.logs.stat().st_mode) == 0o700
    rewind(killed, keep=None)
    assert stat.S_IMODE(killed.logs.stat().st_mode) == 0o700


def test_a_rewind_that_was_killed_itself_is_done_again(killed: Run) -> None:
    rewind(killed, keep=None)
    once = killed.episodes.read_text(), killed.metrics.read_text()
    assert rewind(killed, keep=None) == 2
    assert (killed.episodes.read_text(), killed.metrics.read_text()) == once
    assert len((killed.folder / "generation-0" / "episodes.jsonl").read_text().splitlines()) == 3


def test_a_second_kill_keeps_its_records_as_well(killed: Run) -> None:
    rewind(killed, keep=None)
    killed.start_generation("run-bbbb")
    with killed.episodes.open("a") as episodes:
        episodes.write(json.dumps({"rollout_id": "d", "finished_at": SAVED + 50}) + "\n")
    assert rewind(killed, keep=None) == 2
    assert '"d"' in (killed.folder / "generation-1" / "episodes.jsonl").read_text()
    assert '"d"' not in killed.episodes.read_text()


def test_without_a_checkpoint_nothing_counts(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.create()
    run.start_generation("run-aaaa")
    run.metrics.write_text('{"step": 0, "data": {}}\n')
    run.episodes.write_text('{"rollout_id": "a", "finished_at": 1.0}\n')
    assert rewind(run, keep=None) == 0
    assert run.metrics.read_text() == run.episodes.read_text() == ""


def test_older_checkpoints_go_when_few_are_kept(killed: Run) -> None:
    rewind(killed, keep=1)
    assert checkpoint_steps(killed) == [2]


def test_leftovers_of_the_killed_run_are_ended_and_others_are_not(killed: Run) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(300)"]
    own = subprocess.Popen(sleep, env={**os.environ, MARKER: "run-aaaa"})
    other = subprocess.Popen(sleep, env={**os.environ, MARKER: "run-cccc"})
    scratch_folder("run-aaaa").mkdir()
    try:
        assert end_leftovers(killed) == 1
        assert not scratch_folder("run-aaaa").exists(), "Ray's sessions are gigabytes"
        assert own.poll() is not None
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_two_launchers_do_not_share_a_run(killed: Run) -> None:
    with killed.held(), pytest.raises(ConfigError, match="is already running"), Run(killed.folder).held():
        pass
    with killed.held():
        pass


def sleeping(mark: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], env={**os.environ, MARKER: mark})


def test_resuming_a_copy_leaves_the_processes_of_the_live_original_alone(killed: Run, tmp_path: Path) -> None:
    copy = Run(tmp_path / "copy")
    shutil.copytree(killed.folder, copy.folder, copy_function=shutil.copy2)
    live = sleeping("run-aaaa")
    scratch_folder("run-aaaa").mkdir()
    try:
        assert end_leftovers(copy) == 0
        assert scratch_folder("run-aaaa").exists()
        copy.start_generation("copy-bbbb")
        assert (copy.started_ids(), copy.own_ids()) == (["run-aaaa", "copy-bbbb"], ["copy-bbbb"])
        assert end_leftovers(copy) == 0
        assert live.poll() is None
        link = tmp_path / "link"
        link.symlink_to(killed.folder)
        assert end_leftovers(Run(link)) == 1, "another name of the folder itself"
    finally:
        live.kill()
        live.wait()
        shutil.rmtree(scratch_folder("run-aaaa"), ignore_errors=True)


def test_a_copy_in_the_place_of_its_original_is_not_the_original(killed: Run, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    killed.folder.rename(moved)
    shutil.copytree(moved, killed.folder)
    live = sleeping("run-aaaa")
    try:
        assert end_leftovers(killed) == 0
        with pytest.raises(LaunchError, match=f"was moved.*{live.pid}"):
            end_leftovers(Run(moved))
        assert live.poll() is None
    finally:
        live.kill()
        live.wait()
    assert end_leftovers(Run(moved)) == 0


@pytest.mark.parametrize("content", ["", "{", "null", "[]", '"x"'])
def test_a_summary_that_is_not_whole_is_none(killed: Run, content: str) -> None:
    assert not killed.finished
    killed.summary.write_text(content)
    assert not killed.finished
    killed.summary.write_text('{"steps": 1}')
    assert killed.finished


@pytest.mark.parametrize("content", ["", "{", '["run-aaaa"]'])
def test_marks_that_can_not_be_read_are_named(killed: Run, content: str) -> None:
    killed.generations.write_text(content)
    with pytest.raises(ConfigError, match=r"generations\.json"):
        end_leftovers(killed)


def saves(run: Run, steps: list[int], *, keep: int, bound: CheckpointBound | None) -> int:
    """verl's own keeping of checkpoints in a process that writes these steps; the most that were there at once."""
    from verl.utils.checkpoint.checkpoint_manager import BaseCheckpointManager

    manager, most = BaseCheckpointManager.__new__(BaseCheckpointManager), 0
    manager.previous_saved_paths = []
    for step in steps:
        actor = run.checkpoints / f"global_step_{step}" / "actor"
        manager.ensure_checkpoint_capacity(keep)
        saved(actor / "model_world_size_2_rank_0.pt")
        if bound is not None:
            bound.enforce()
        most = max(most, len(checkpoint_steps(run)))
        checkpoint(run, step)
        manager.register_checkpoint(str(actor), keep)
        if bound is not None:
            bound.enforce()
    return most


@pytest.mark.parametrize("keep", [2, 3])
def test_verl_counts_the_checkpoints_of_its_own_process_and_the_run_those_of_all(tmp_path: Path, keep: int) -> None:
    pytest.importorskip("verl")
    alone, bounded = Run(tmp_path / "alone"), Run(tmp_path / "bounded")
    for run, bound in ((alone, None), (bounded, CheckpointBound(bounded, keep=keep))):
        run.create()
        saves(run, [1, 2, 3, 4], keep=keep, bound=bound)
        assert checkpoint_steps(run) == [1, 2, 3, 4][-keep:]
    assert saves(alone, [5, 6, 7], keep=keep, bound=None) == 2 * keep, "what the bound is for"
    assert saves(bounded, [5, 6, 7], keep=keep, bound=CheckpointBound(bounded, keep=keep)) == keep
    assert checkpoint_steps(bounded) == [5, 6, 7][-keep:]
    assert saves(bounded, [8], keep=keep, bound=CheckpointBound(bounded, keep=keep)) == keep
    assert latest_step(bounded) == 8


def test_neither_the_newest_whole_checkpoint_nor_one_that_is_not_whole_is_deleted(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.create()
    for step in (1, 2, 3):
        checkpoint(run, step)
    cut(run.checkpoints / "global_step_1" / "data.pt")  # holds a policy
    cut(run.checkpoints / "global_step_3" / "data.pt")
    CheckpointBound(run, keep=1).enforce()
    assert checkpoint_steps(run) == [1, 2, 3]
    CheckpointBound(run, keep=None).enforce()
    assert checkpoint_steps(run) == [1, 2, 3]


def test_an_old_checkpoint_that_verl_is_deleting_counts_no_more(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.create()
    for step in (1, 2, 3):
        checkpoint(run, step)
    (run.checkpoints / "global_step_1" / "actor" / "model_world_size_2_rank_0.pt").unlink()
    saved(run.checkpoints / "global_step_4" / "actor" / "model_world_size_2_rank_0.pt")
    CheckpointBound(run, keep=3).enforce()
    assert checkpoint_steps(run) == [1, 2, 3, 4]


def test_a_checkpoint_that_can_not_be_deleted_stays_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run")
    run.create()
    for step in (1, 2, 3):
        checkpoint(run, step)
    asked: list[Path] = []

    def refuse(self: Path, target: Path) -> Path:
        asked.append(self)
        raise PermissionError("not yours")

    monkeypatch.setattr(Path, "rename", refuse)
    bound = CheckpointBound(run, keep=2)
    bound.enforce()
    bound.enforce()
    assert [path.name for path in asked] == ["global_step_1"]
    assert checkpoint_steps(run) == [1, 2, 3]


def test_what_a_kill_left_half_deleted_goes_when_the_run_goes_on(killed: Run) -> None:
    left = killed.checkpoints / "deleted-global_step_0" / "actor"
    saved(left / "model_world_size_2_rank_0.pt")
    assert rewind(killed, keep=2) == 2
    assert not left.exists() and checkpoint_steps(killed) == [1, 2]
