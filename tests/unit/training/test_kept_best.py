"""A guarded run's folder: the best checkpoint survives the trainer's own deletions, and the run goes back to it."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from s3_agent.agl.guard import Guard
from s3_agent.errors import LaunchError
from s3_agent.processes.run_folder import Run
from s3_agent.training.kept_best import KeptBest, RunStopped, go_back_to_best, read_report
from s3_agent.training.resume import checkpoint_steps, exportable_step, latest_step
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
    ours = run.best / "global_step_1" / "data.pt"
    assert ours.samefile(run.checkpoints / "global_step_1" / "data.pt")
    logged(run, 2, 0.6)
    logged(run, 3, 0.8)
    kept.look()
    assert [path.name for path in run.best.iterdir()] == ["global_step_3"]


def test_a_resumed_run_is_not_judged_by_what_was_judged_before(run: Run) -> None:
    collapse(run, Guard())
    again = KeptBest(run, Guard(action="stop"), after=5)
    again.look()
    assert again.report is None
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
        patched.setattr("s3_agent.training.kept_best.link_tree", full)
        kept.look()
    assert not run.best.exists() or not list(run.best.iterdir())
    logged(run, 2, 0.7)
    kept.look()
    assert [path.name for path in run.best.iterdir()] == ["global_step_2"]
