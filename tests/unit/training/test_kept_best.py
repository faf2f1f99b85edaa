"""A guarded run's folder: the best checkpoint survives the trainer's own deletions, and the run goes back to it."""

import errno
import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from s3_agent.agl.guard import Guard, GuardReport
from s3_agent.errors import LaunchError
from s3_agent.processes.run_folder import Run
from s3_agent.training import kept_best
from s3_agent.training.kept_best import KeptBest, RunStopped, go_back_to_best, link_tree
from s3_agent.training.resume import (
    checkpoint_steps,
    exportable_step,
    latest_step,
    read_report,
    rewind,
    step_folder,
    unfinished_stop,
)
from tests.unit.training.test_resume import checkpoint


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    run.create()
    return run


def logged(run: Run, step: int, accuracy: float, **data: Any) -> None:
    """What the trainer leaves of a step: its checkpoint first, then its line; only two checkpoints stay."""
    if step:
        checkpoint(run, step)
        shutil.rmtree(run.checkpoints / f"global_step_{step - 2}", ignore_errors=True)
    with run.metrics.open("a") as lines:
        lines.write(json.dumps({"step": step, "at": step, "data": {"s3/val/accuracy": accuracy, **data}}) + "\n")


def collapse(run: Run, guard: Guard) -> KeptBest:
    kept = KeptBest(run, guard)
    for step, accuracy in enumerate((0.5, 0.6, 0.7, 0.65, 0.4, 0.3)):
        logged(run, step, accuracy)
        kept.look()
    return kept


def kept_steps(run: Run) -> list[str]:
    return sorted(path.name for path in run.best.iterdir()) if run.best.exists() else []


def weights(folder: Path) -> bytes:
    return (folder / "actor" / "model_world_size_2_rank_0.pt").read_bytes()


def test_a_stopped_run_goes_back_to_its_best_checkpoint(run: Run) -> None:
    with pytest.raises(RunStopped, match=r"0\.300 after step 5") as stopped:
        collapse(run, Guard(action="stop"))
    assert checkpoint_steps(run) == [4, 5], "the trainer deleted the best one"
    report = stopped.value.report
    assert (report.step, report.best_step, report.best_validation) == (5, 2, 0.7)
    assert read_report(run) == report
    go_back_to_best(run, report.best_step)
    assert checkpoint_steps(run) == [2]
    assert latest_step(run) == exportable_step(run) == 2
    assert (run.checkpoints / "latest_checkpointed_iteration.txt").read_text() == "2"
    assert sorted(path.name for path in run.after_best.iterdir()) == ["global_step_4", "global_step_5"]
    go_back_to_best(run, report.best_step)  # a launcher that was killed in between does it again
    assert latest_step(run) == 2


def test_a_warning_keeps_and_changes_nothing(run: Run) -> None:
    kept = collapse(run, Guard())
    assert kept.report is not None and not kept.report.stopped
    assert checkpoint_steps(run) == [4, 5] and not run.best.exists()
    assert read_report(run) == kept.report


def test_off_reports_nothing(run: Run) -> None:
    assert collapse(run, Guard(action="off")).report is None
    assert read_report(run) is None


def test_a_run_that_never_got_better_goes_back_to_its_start(run: Run) -> None:
    kept = KeptBest(run, Guard(action="stop"))
    with pytest.raises(RunStopped) as stopped:
        for step, accuracy in enumerate((0.5, 0.4, 0.3)):
            logged(run, step, accuracy)
            kept.look()
    assert stopped.value.report.best_step == 0
    go_back_to_best(run, 0)
    assert checkpoint_steps(run) == [] and latest_step(run) == 0


def test_the_best_is_kept_without_a_second_copy_on_the_disk(run: Run) -> None:
    kept = KeptBest(run, Guard(action="stop"))
    logged(run, 0, 0.5)
    logged(run, 1, 0.6)
    kept.look()
    kept.settle()
    ours = run.best / "global_step_1" / "data.pt"
    assert ours.samefile(run.checkpoints / "global_step_1" / "data.pt")
    logged(run, 2, 0.6)
    logged(run, 3, 0.8)
    kept.look()
    kept.settle()
    assert kept_steps(run) == ["global_step_3"]


def test_a_resumed_run_is_not_judged_by_what_was_judged_before(run: Run) -> None:
    warning = collapse(run, Guard()).report
    again = KeptBest(run, Guard(action="stop"), after=5)
    again.look()
    assert again.report == warning, "it is still true, and does not keep the guard from stopping the run"
    for step, accuracy in ((6, 0.66), (7, 0.3), (8, 0.3)):
        logged(run, step, accuracy)
        if step < 8:
            again.look()
    with pytest.raises(RunStopped) as stopped:
        again.look()
    assert stopped.value.report.best_step == 6, "step 2 validated better, and its checkpoint is gone"
    go_back_to_best(run, 6)
    assert latest_step(run) == 6


def test_without_the_best_checkpoint_nothing_is_moved(run: Run) -> None:
    collapse(run, Guard())
    with pytest.raises(LaunchError, match="step 2 validated best"):
        go_back_to_best(run, 2)
    assert checkpoint_steps(run) == [4, 5] and latest_step(run) == 5


def test_a_checkpoint_that_can_not_be_kept_does_not_end_the_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = KeptBest(run, Guard(action="stop"))
    logged(run, 0, 0.5)
    logged(run, 1, 0.6)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(kept_best, "link_tree", full)
        kept.look()
        kept.settle()
    assert kept_steps(run) == []
    logged(run, 2, 0.55)
    kept.look()
    kept.settle()
    assert kept_steps(run) == ["global_step_2"], "it is the best of those that can be kept"


def test_a_copy_that_takes_long_does_not_hold_up_the_watch(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Event()

    def slow(source: Path, target: Path) -> None:
        assert disk.wait(60)
        link_tree(source, target)

    monkeypatch.setattr(kept_best, "link_tree", slow)
    kept = KeptBest(run, Guard(action="stop", invalid_actions=0.5, steps=1))
    logged(run, 0, 0.5)
    logged(run, 1, 0.6)
    kept.look()  # would not return if it waited
    kept.look()
    assert kept_steps(run) == []
    disk.set()
    with run.metrics.open("a") as lines:
        data = {"training/n_sample": 4, "s3/train/invalid_actions": 0.9}
        lines.write(json.dumps({"step": 2, "at": 2, "data": data}) + "\n")
    with pytest.raises(RunStopped) as stopped:
        kept.look()
    assert stopped.value.report.best_step == 1, "a stop waits for it"
    assert kept_steps(run) == ["global_step_1"]


def test_of_the_steps_of_an_earlier_start_the_best_that_is_there_is_kept(run: Run) -> None:
    for step, accuracy in enumerate((0.5, 0.9, 0.7, 0.7, 0.6)):  # step 1 is gone, step 2 is kept
        logged(run, step, accuracy)
    link_tree(step_folder(run, 4), run.best / "global_step_2")
    (run.best / "global_step_4.partial").mkdir()
    again = KeptBest(run, Guard(action="stop"), after=4)
    again.look()
    again.settle()
    assert kept_steps(run) == ["global_step_2"]
    shutil.rmtree(run.best)
    again = KeptBest(run, Guard(action="stop"), after=4)
    again.look()
    again.settle()
    assert kept_steps(run) == ["global_step_3"], "it is in the run's checkpoints"


def test_a_step_that_is_trained_again_is_kept_with_its_new_weights(run: Run) -> None:
    kept = KeptBest(run, Guard(action="stop"))
    for step, accuracy in enumerate((0.5, 0.6, 0.7)):
        logged(run, step, accuracy)
        kept.look()
    kept.settle()
    run.start_generation("run-aaaa")
    run.checkpoints.rename(run.folder / "moved-away")
    assert rewind(run, keep=None) == 0
    assert kept_steps(run) == []
    assert [path.name for path in (run.folder / "generation-0" / "best").iterdir()] == ["global_step_2"]
    again = KeptBest(run, Guard(action="stop"))
    for step, accuracy in enumerate((0.5, 0.4)):
        logged(run, step, accuracy)
        again.look()
    link_tree(run.folder / "moved-away" / "global_step_2", run.best / "global_step_2")  # somebody puts it back
    logged(run, 2, 0.8)
    with zipfile.ZipFile(step_folder(run, 2) / "actor" / "model_world_size_2_rank_0.pt", "w") as archive:
        archive.writestr("data", b"trained again")
    again.look()
    again.settle()
    assert weights(run.best / "global_step_2") == weights(step_folder(run, 2))
    assert b"trained again" in weights(run.best / "global_step_2")


def test_what_is_later_than_the_step_goes_aside_with_its_generation(run: Run) -> None:
    with pytest.raises(RunStopped):
        collapse(run, Guard(action="stop"))
    run.start_generation("run-aaaa")
    go_back_to_best(run, 2)
    (run.best / "global_step_1.partial").mkdir(parents=True)
    assert rewind(run, keep=None) == 2
    moved = run.folder / "generation-0"
    assert sorted(path.name for path in (moved / "after-best").iterdir()) == ["global_step_4", "global_step_5"]
    assert not list(run.after_best.iterdir()) and kept_steps(run) == []
    assert read_report(run) is None and (moved / "guard.json").exists()


@pytest.mark.parametrize(("stopped", "step", "stays"), [(False, 2, True), (False, 3, False), (True, 2, False)])
def test_a_warning_stays_if_its_step_counts(run: Run, stopped: bool, step: int, stays: bool) -> None:
    for number in range(3):
        logged(run, number, 0.5)
    run.start_generation("run-aaaa")
    report = GuardReport(reason="r", step=step, stopped=stopped, best_step=0, best_validation=0.5)
    run.guard.write_text(report.model_dump_json())
    assert rewind(run, keep=None) == 2
    assert read_report(run) == (report if stays else None)
    assert KeptBest(run, Guard(), after=2).report == (report if stays else None)


def test_a_kill_while_a_stopped_run_is_rewound_leaves_no_stop_without_a_summary(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a run would be taken for one that was killed before its summary was written, and would not be trained on."""
    with pytest.raises(RunStopped):
        collapse(run, Guard(action="stop"))
    go_back_to_best(run, 2)
    run.summary.write_text("{}")
    run.start_generation("run-aaaa")
    moves = 0
    while True:
        copy = Run(run.folder.with_name(f"copy-{moves}"))
        shutil.copytree(run.folder, copy.folder)
        left = iter(range(moves))
        rename = Path.rename

        def killed(self: Path, target: Path, left: Iterator[int] = left, rename: Any = rename) -> Path:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return rename(self, target)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", killed)
            try:
                rewind(copy, keep=None)
                break
            except KeyboardInterrupt:
                moves += 1
        assert unfinished_stop(copy) is None
        assert rewind(copy, keep=None) == 2
    assert moves >= 5
