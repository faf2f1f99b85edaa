"""Watches a run with the rules of `trainer.guard`, and keeps the checkpoint that validated best.

Called by the main job while the trainer runs: nothing of the trainer is changed. The best checkpoint is kept as hard
links, so that it needs disk space only once the trainer has deleted its own copy. When a rule trips, the run's
checkpoints become those until the best one; later ones are moved aside, so that both the export and `--resume` take the
best.
"""

import json
import os
import shutil
from pathlib import Path

import structlog

from s3_agent.agl.guard import Guard, GuardReport, best_of, tripped, validation_of
from s3_agent.data.files.whole import write_whole
from s3_agent.errors import LaunchError
from s3_agent.processes.run_folder import Run
from s3_agent.rollout.episode_log import GrowingFile
from s3_agent.training.resume import LATEST, checkpoint_steps, is_whole, step_folder

log = structlog.get_logger()


class RunStopped(Exception):
    """The guard ends the run. Not an error: what was kept is exported."""

    def __init__(self, report: GuardReport) -> None:
        super().__init__(report.reason)
        self.report = report


class KeptBest:
    """Call `look` from time to time while the trainer runs, which continues after step `after`."""

    def __init__(self, run: Run, guard: Guard, *, after: int = 0) -> None:
        self._run, self._guard, self._after = run, guard, after
        self._rows: list[dict] = []
        self._metrics = GrowingFile(run.metrics)
        self._best: tuple[int, float] | None = None
        self.report: GuardReport | None = None

    def look(self) -> None:
        """Read new steps; keep the best checkpoint, warn once. Raises RunStopped when the guard is to stop the run."""
        if self._guard.action == "off":
            return
        for line in self._metrics.lines():
            self._rows.append(json.loads(line))
            step = self._rows[-1]["step"]
            self._keep(step)
            # The steps of an earlier start were judged then.
            if self.report is not None or (self._after and step <= self._after):
                continue
            if (reason := tripped(self._guard, self._rows)) is not None:
                self._trip(reason, step)

    def _trip(self, reason: str, step: int) -> None:
        stopped = self._guard.action == "stop"
        best = (self._best if stopped else best_of(self._rows)) or (0, 0.0)
        self.report = GuardReport(reason=reason, step=step, stopped=stopped, best_step=best[0], best_validation=best[1])
        write_whole(self._run.guard, self.report.model_dump_json(indent=1))
        log.warning("the run loses what it had learned", reason=reason, best_step=best[0], stopped=stopped)
        if stopped:
            raise RunStopped(self.report)

    def _keep(self, step: int) -> None:
        """Keep the checkpoint of the last row if it validated best of all steps whose checkpoint is there."""
        result = validation_of(self._rows[-1])
        if self._guard.action != "stop" or result is None or (self._best is not None and result <= self._best[1]):
            return
        source = step_folder(self._run, step)
        kept = self._run.best / source.name
        if step and not is_whole(kept):
            if not is_whole(source):
                return
            try:
                link_tree(source, kept)
            except OSError as cause:
                log.warning("the best checkpoint can not be kept", step=step, cause=str(cause))
                return
        self._best = (step, result)
        for other in self._run.best.iterdir() if self._run.best.exists() else ():
            if other != kept and step > self._after:
                shutil.rmtree(other)


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

    Raises LaunchError, and moves nothing, if the best checkpoint is gone.
    """
    folder = step_folder(run, best_step)
    kept = run.best / folder.name
    if best_step and not is_whole(folder):
        if not is_whole(kept):
            raise LaunchError(
                f"step {best_step} validated best, and neither {run.checkpoints} nor {run.best} has its checkpoint",
                remedy=f"export another step: s3-agent export-policy {run.folder} --step N",
            )
        link_tree(kept, folder)
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


def read_report(run: Run) -> GuardReport | None:
    """What the guard found in this run; None when no rule tripped."""
    return GuardReport.model_validate_json(run.guard.read_bytes()) if run.guard.exists() else None
