"""Finds the newest complete checkpoint of a killed run, and sets aside all records that are newer than it.

Called by the main job; the trainer uses it to limit the number of checkpoints. Whether a checkpoint is complete is read
from its own files, because verl's marker of the newest checkpoint can be damaged or missing. The time at which a step
was logged (`metrics.jsonl`) separates the records that count from those of rollouts that will be played again. Records
that do not count are moved to a folder beside the run's records, and no complete checkpoint is deleted.

The guard keeps the best checkpoint of a run in `best`, and has later ones in `after-best` once it has stopped the run
(`s3_agent.training.kept_best`).
"""

import json
import re
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import structlog

from s3_agent.agl.guard import GuardReport
from s3_agent.data.files.whole import write_whole, written_whole
from s3_agent.errors import ConfigError, LaunchError
from s3_agent.processes.run_folder import METRICS, Run
from s3_agent.processes.stack import own_processes, scratch_folder

log = structlog.get_logger()

LATEST = "latest_checkpointed_iteration.txt"
STEP_FOLDER = "global_step_"
DELETED = "deleted-"
KILL_S = 20.0
_SHARD = re.compile(r"(?P<kind>model|optim|extra_state)_world_size_(?P<world>\d+)_rank_(?P<rank>\d+)\.pt")
_KINDS = ("model", "optim", "extra_state")


def _steps_in(folder: Path) -> list[int]:
    names = (path.parent.name.removeprefix(STEP_FOLDER) for path in folder.glob(f"{STEP_FOLDER}*/actor"))
    return sorted(int(name) for name in names if name.isdecimal())


def checkpoint_steps(run: Run) -> list[int]:
    """The steps that have an actor's checkpoint, complete or not, in order."""
    return _steps_in(run.checkpoints)


def step_folder(run: Run, step: int) -> Path:
    """The folder of a step's checkpoint."""
    return _folder_in(run.checkpoints, step)


def _folder_in(place: Path, step: int) -> Path:
    return place / f"{STEP_FOLDER}{step}"


def has_whole_actor(folder: Path, kinds: Sequence[str] = _KINDS) -> bool | None:
    """Whether the files of these kinds of every rank in a checkpoint are complete.

    torch saves a zip archive and writes its directory last, so an incomplete file has no directory. None when the actor
    has no such files: another of verl's engines wrote it, and its state can not be checked here.
    """
    shards: dict[str, set[int]] = {kind: set() for kind in _KINDS}
    world = 0
    for path in (folder / "actor").glob("*.pt"):
        if named := _SHARD.fullmatch(path.name):
            world = max(world, int(named["world"]))
            if zipfile.is_zipfile(path):
                shards[named["kind"]].add(int(named["rank"]))
    if not world:
        return None
    return all(shards[kind] == set(range(world)) for kind in kinds)


def is_whole(folder: Path) -> bool:
    """Whether a run can continue from a checkpoint: it has the actor and, written last, the position in the data."""
    return zipfile.is_zipfile(folder / "data.pt") and has_whole_actor(folder) is not False


def holds_policy(folder: Path) -> bool:
    """Whether a checkpoint has a policy that is not known to be incomplete, with or without its optimizer."""
    if (whole := has_whole_actor(folder, kinds=("model",))) is None:
        return any(path.is_file() for path in folder.rglob("*"))
    return whole


def latest_step(run: Run) -> int:
    """The step of the newest complete checkpoint; 0 when there is none."""
    return next((step for step in reversed(checkpoint_steps(run)) if is_whole(step_folder(run, step))), 0)


def exportable_step(run: Run) -> int:
    """The newest step that has a policy, even if a run can not continue from it; 0 when there is none."""
    return next((step for step in reversed(checkpoint_steps(run)) if holds_policy(step_folder(run, step))), 0)


def policies(run: Run) -> dict[int, Path]:
    """The checkpoints that have a policy, by step, in order: in `checkpoints`, or else in `best` or `after-best`."""
    found: dict[int, Path] = {}
    for place in (run.checkpoints, run.best, run.after_best):
        for step in _steps_in(place):
            if step not in found and holds_policy(folder := _folder_in(place, step)):
                found[step] = folder
    return dict(sorted(found.items()))


def read_report(run: Run) -> GuardReport | None:
    """What the guard found in this run; None when no rule tripped."""
    return GuardReport.model_validate_json(run.guard.read_bytes()) if run.guard.exists() else None


def unfinished_stop(run: Run) -> GuardReport | None:
    """What the guard found when it stopped a run that has no summary, because its launcher was killed; else None."""
    report = read_report(run)
    return report if report is not None and report.stopped and not run.finished else None


def _delete(run: Run, step: int) -> None:
    """Rename a checkpoint, then delete it: a partly deleted one must not count as a checkpoint. Raises OSError."""
    folder = step_folder(run, step)
    gone = folder.with_name(DELETED + folder.name)
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


class CheckpointBound:
    """Limits the run to `keep` checkpoints, including the one that is being written.

    verl counts only the checkpoints of its own process, so after a resume it would keep `keep` more. Only complete
    checkpoints are deleted, the oldest first, and never the newest complete one.
    """

    def __init__(self, run: Run, *, keep: int | None) -> None:
        self._run, self._keep = run, keep
        self._refused: set[int] = set()

    def enforce(self) -> None:
        """Delete the checkpoints beyond the limit. One that can not be deleted is reported once, and stays."""
        steps = checkpoint_steps(self._run)
        if self._keep is None or len(steps) <= self._keep:
            return
        whole = [step for step in steps if is_whole(step_folder(self._run, step))]
        written = len(whole) + (steps[-1] not in whole)
        for step in whole[:-1][: max(0, written - self._keep)]:
            if step in self._refused:
                continue
            try:
                _delete(self._run, step)
            except OSError as cause:
                self._refused.add(step)
                log.warning("an old checkpoint can not be deleted", step=step, cause=str(cause))


def end_leftovers(run: Run) -> int:
    """Kill the processes that earlier generations of this run left, found by their marks; returns their number.

    The marks in a copied folder belong to its original: those processes are not killed. Raises LaunchError when a
    process does not end, or was started before the folder was moved.
    """
    if moved := [process.pid for run_id in run.moved_ids() for process in own_processes(run_id)]:
        raise LaunchError(
            f"{run.folder} was moved, and processes that were started before still run: {', '.join(map(str, moved))}",
            remedy="stop them, then resume again",
        )
    left = [process for run_id in run.own_ids() for process in own_processes(run_id)]
    for process in left:
        try:
            process.kill()
        except psutil.Error:
            continue
    _, alive = psutil.wait_procs(left, timeout=KILL_S)
    if alive:
        pids = ", ".join(str(process.pid) for process in alive)
        raise LaunchError(f"processes {pids} of the killed run do not end", remedy="stop them, then resume again")
    for run_id in run.own_ids():
        shutil.rmtree(scratch_folder(run_id), ignore_errors=True)
    return len(left)


def require_ranks(run: Run, ranks: int) -> None:
    """Raises ConfigError when the newest complete checkpoint has another number of ranks: verl can not load it."""
    step = latest_step(run)
    names = (_SHARD.fullmatch(path.name) for path in (step_folder(run, step) / "actor").glob("*.pt"))
    worlds = sorted({int(named["world"]) for named in names if named})
    if worlds and ranks not in worlds:
        raise ConfigError(
            f"the checkpoint of step {step} was written by {worlds[-1]} ranks, and the recipe asks for {ranks}",
            remedy="resume with the `trainer.gpus` and `trainer.nodes` that the run was started with",
        )


def rewind(run: Run, *, keep: int | None) -> int:
    """Bring the folder to the state in which the run stopped at its newest complete checkpoint; returns that step.

    `keep` limits the complete checkpoints, because a restarted trainer does not count the earlier ones. Records, logs
    and the summary of the generation are moved to a separate folder, and so are an incomplete checkpoint that still
    holds a policy, and what the guard kept of later steps: the run trains these steps again. A warning of the guard
    stays if its step counts. Raises LaunchError, and changes nothing, when policies exist but no run can continue from
    any of them, or when the records can not be read.
    """
    step, earlier = latest_step(run), run.folder / f"generation-{len(run.started_ids()) - 1}"
    if not step and (policy := exportable_step(run)):
        raise LaunchError(
            f"no checkpoint in {run.checkpoints} is complete: the run can not continue from any of them",
            remedy=f"`s3-agent export-policy {run.folder} --step {policy} -o …` may still give its policy; to train "
            f"again from the beginning, move {run.checkpoints} away",
        )
    report = read_report(run)
    warned = report is not None and not report.stopped and report.step <= step
    # In this order: a run that was stopped and has no summary would be taken for one that was killed before it.
    left = (*(() if warned else (run.guard,)), run.summary, run.metrics, run.episodes, run.logs)
    kept = [path for path in left if path.exists() and not _in(earlier, path).exists()]
    metrics = list(_rows(run.metrics if run.metrics in kept else _in(earlier, run.metrics)))
    until = _counts_until(metrics, step, run.metrics)
    episodes = run.episodes if run.episodes in kept else _in(earlier, run.episodes)
    for _ in _rows(episodes):  # checked before anything is moved
        pass
    earlier.mkdir(exist_ok=True)
    # If an earlier rewind was killed, it has moved some of them already.
    for path in kept:
        path.rename(_in(earlier, path))
    run.make_logs()
    _write(run.metrics, (line for line, row in metrics if step and row["step"] <= step))
    rows = _rows(_in(earlier, run.episodes))
    _write(run.episodes, (line for line, row in rows if row["finished_at"] <= until))
    _tidy(run, step, earlier=_in(earlier, run.checkpoints), keep=keep)
    for place in (run.best, run.after_best):
        _set_aside(place, step, earlier=_in(earlier, place))
    return step


def _in(folder: Path, path: Path) -> Path:
    return folder / path.name


def _counts_until(metrics: list[tuple[bytes, dict[str, Any]]], step: int, path: Path) -> float:
    """The Unix time of `step`: records up to it belong to the steps until `step`. Raises LaunchError.

    A step with a complete checkpoint that is not logged was the last one: the run was killed between the two writes.
    """
    if not step:
        return float("-inf")
    logged = [row for _, row in metrics]
    if not any(row["step"] >= step for row in logged):
        return float("inf")
    last = max(
        (row for row in logged if row["step"] <= step), key=lambda row: row["step"], default={"at": float("-inf")}
    )
    if "at" not in last:
        raise LaunchError(
            f"{path}: step {last['step']} has no time, so its rollouts can not be told apart from later ones",
            remedy="an earlier version of s3-agent started this run: resume it with that version, or start a new run",
        )
    return last["at"]


def _tidy(run: Run, step: int, *, earlier: Path, keep: int | None) -> None:
    """Keep only the complete checkpoints that count, and write the newest into verl's marker."""
    if step:
        if not (marker := run.checkpoints / LATEST).exists() or marker.read_bytes() != str(step).encode():
            write_whole(marker, str(step))
    else:
        (run.checkpoints / LATEST).unlink(missing_ok=True)
    whole: list[int] = []
    for found in checkpoint_steps(run):
        folder = step_folder(run, found)
        if is_whole(folder):
            whole.append(found)
        elif holds_policy(folder):
            earlier.mkdir(exist_ok=True)
            folder.rename(earlier / folder.name)
        else:
            shutil.rmtree(folder)
    for found in whole[:-keep] if keep else []:
        _delete(run, found)
    for left in run.checkpoints.glob(f"{DELETED}*"):
        shutil.rmtree(left)


def _set_aside(place: Path, step: int, *, earlier: Path) -> None:
    """Move the checkpoints of later steps to `earlier`, and remove what a kill left half linked."""
    for found in _steps_in(place):
        if found > step:
            earlier.mkdir(exist_ok=True)
            _folder_in(place, found).rename(_folder_in(earlier, found))
    for partial in place.glob("*.partial"):
        shutil.rmtree(partial)


def _rows(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The lines of a log with their parsed content, without an incomplete last line. Raises LaunchError."""
    if not path.exists():
        return
    field = "step" if path.name == METRICS else "finished_at"
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
                float(row[field])
            except (ValueError, KeyError, TypeError) as cause:
                raise LaunchError(
                    f"{path}:{number} is not a complete record: {cause!r}",
                    remedy="look at the line; if it is damaged, remove it and resume again",
                ) from cause
            yield line, row


def _write(path: Path, lines: Iterator[bytes]) -> None:
    with written_whole(path) as write:
        for line in lines:
            write(line)
