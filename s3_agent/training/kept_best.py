"""Watches a run with the rules of `trainer.guard`, and keeps the checkpoint that validated best.

Called by the main job while the trainer runs: nothing of the trainer is changed. The best checkpoint is kept as hard
links, so that it needs disk space only once the trainer has deleted its own copy. A thread makes them, because a disk
without hard links gets copies, which take minutes. When a rule trips, the run's checkpoints become those until the best
one; later ones are moved aside, so that both the export and `--resume` take the best.
"""

import json
import os
import shutil
from math import inf
from pathlib import Path
from threading import Thread

import structlog

from s3_agent.agl.guard import Guard, GuardReport, Row, best_of, tripped, validation_of
from s3_agent.data.files.whole import write_whole
from s3_agent.errors import LaunchError
from s3_agent.processes.run_folder import Run
from s3_agent.rollout.episode_log import GrowingFile
from s3_agent.training.resume import LATEST, checkpoint_steps, is_whole, read_report, step_folder

log = structlog.get_logger()


class RunStopped(Exception):
    """The guard ends the run. Not an error: what was kept is exported."""

    def __init__(self, report: GuardReport) -> None:
        super().__init__(report.reason)
        self.report = report


class KeptBest:
    """Call `look` from time to time while the trainer runs, which continues after step `after`, and `settle` at the
    end.

    `report` is what the guard found, in this start or an earlier one.
    """

    def __init__(self, run: Run, guard: Guard, *, after: int = 0) -> None:
        self._run, self._guard, self._after = run, guard, after
        self._rows: list[Row] = []
        self._metrics = GrowingFile(run.metrics)
        self._best: tuple[int, float] | None = None
        self._linking: _Linking | None = None
        self.report = read_report(run)

    def look(self) -> None:
        """Read new steps; keep the best checkpoint, warn once. Raises RunStopped when the guard is to stop the run."""
        if self._guard.action == "off":
            return
        new: list[Row] = [json.loads(line) for line in self._metrics.lines()]
        # The steps of an earlier start were judged then, and the best of them may have been deleted since.
        earlier = [row for row in new if self._after and row["step"] <= self._after]
        self._rows += earlier
        for row in sorted(earlier, key=_result, reverse=True):
            self._keep(row)
        for row in new[len(earlier) :]:
            self._rows.append(row)
            self._keep(row)
            if self.report is None or self._guard.action == "stop":
                self._judge(row["step"])

    def settle(self) -> None:
        """Wait until the best checkpoint is kept. A checkpoint that can not be kept is reported, and stays no best."""
        if (linking := self._linking) is None:
            return
        linking.join()
        self._linking = None
        if linking.failed is not None:
            log.warning("the best checkpoint can not be kept", step=linking.step, cause=str(linking.failed))
        else:
            self._is_best(linking.step, linking.result)

    def _judge(self, step: int) -> None:
        if (reason := tripped(self._guard, self._rows)) is None:
            return
        self.settle()
        stopped = self._guard.action == "stop"
        best = (self._best if stopped else best_of(self._rows)) or (0, 0.0)
        self.report = GuardReport(reason=reason, step=step, stopped=stopped, best_step=best[0], best_validation=best[1])
        write_whole(self._run.guard, self.report.model_dump_json(indent=1))
        log.warning("the run loses what it had learned", reason=reason, best_step=best[0], stopped=stopped)
        if stopped:
            raise RunStopped(self.report)

    def _keep(self, row: Row) -> None:
        """Keep the checkpoint of this row's step if it validated best of all steps whose checkpoint is there."""
        result, step = validation_of(row), row["step"]
        if self._guard.action != "stop" or result is None:
            return
        self.settle()
        if self._best is not None and result <= self._best[1]:
            return
        source = step_folder(self._run, step)
        kept = self._run.best / source.name
        if not step or (step <= self._after and is_whole(kept)):
            self._is_best(step, result)
        elif is_whole(source):
            self._linking = _Linking(source, kept, step=step, result=result)
            self._linking.start()

    def _is_best(self, step: int, result: float) -> None:
        self._best = (step, result)
        for other in self._run.best.iterdir() if self._run.best.exists() else ():
            if other.name != step_folder(self._run, step).name:
                shutil.rmtree(other)


def _result(row: Row) -> float:
    result = validation_of(row)
    return -inf if result is None else result


class _Linking(Thread):
    """Links the checkpoint of a step, whose validation had this result. `failed` is the reason why it could not."""

    def __init__(self, source: Path, target: Path, *, step: int, result: float) -> None:
        super().__init__(daemon=True)
        self._source, self._target = source, target
        self.step, self.result = step, result
        self.failed: OSError | None = None

    def run(self) -> None:
        try:
            link_tree(self._source, self._target)
        except OSError as cause:
            self.failed = cause


def link_tree(source: Path, target: Path) -> None:
    """Make `target` a copy of a folder out of hard links, or of copies where the disk has none. It appears at once."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, copy_function=_link)
    shutil.rmtree(target, ignore_errors=True)
    partial.replace(target)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def go_back_to_best(run: Run, best_step: int) -> None:
    """Make the best checkpoint the run's newest: later ones are moved to `after-best`, none is deleted.

    A launcher that was killed in between does it again. Raises LaunchError, and moves nothing, if the best checkpoint
    is gone.
    """
    folder = step_folder(run, best_step)
    kept = run.best / folder.name
    if best_step and not is_whole(folder):
        if not is_whole(kept):
            raise LaunchError(
                f"step {best_step} validated best, and neither {run.checkpoints} nor {run.best} has its checkpoint",
                remedy=f"export another step: s3-agent export-policy {run.folder} --step N; to train on from the last "
                f"checkpoint instead, remove {run.guard} and resume",
            )
        shutil.rmtree(folder, ignore_errors=True)
        run.checkpoints.mkdir(exist_ok=True)
        kept.rename(folder)
    for step in checkpoint_steps(run):
        if step > best_step:
            run.after_best.mkdir(exist_ok=True)
            target = run.after_best / step_folder(run, step).name
            shutil.rmtree(target, ignore_errors=True)
            step_folder(run, step).rename(target)
    if best_step:
        write_whole(run.checkpoints / LATEST, str(best_step))
    else:
        (run.checkpoints / LATEST).unlink(missing_ok=True)
