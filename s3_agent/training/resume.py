"""What a run goes on from after it was killed: its newest whole checkpoint, and nothing of what came after it.

Whether a checkpoint is whole is read from its own files: the marker in which verl names the newest one can be torn or
missing. The time at which a step was logged (`metrics.jsonl`) separates the records that count from those of rollouts
that will be played again. Records that do not count are kept beside the run's, and nothing that is whole is deleted.
"""

import json
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import structlog

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


def checkpoint_steps(run: Run) -> list[int]:
    """The steps that have an actor's checkpoint, whole or not, in order."""
    names = (path.parent.name.removeprefix(STEP_FOLDER) for path in run.checkpoints.glob(f"{STEP_FOLDER}*/actor"))
    return sorted(int(name) for name in names if name.isdecimal())


def step_folder(run: Run, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return run.checkpoints / f"{STEP_FOLDER}{step}"


def has_whole_actor(folder: Path) -> bool | None:
    """Whether every rank's model, optimizer and state are in a checkpoint to their last byte.

    What torch saves is a zip archive, whose directory is written last: a file that was cut short has none. None where
    the actor has no such files: it was written by another of verl's engines, and can not be judged here.
    """
    shards: dict[str, set[int]] = {kind: set() for kind in _KINDS}
    world = 0
    for path in (folder / "actor").glob("*.pt"):
        if named := _SHARD.fullmatch(path.name):
            if not zipfile.is_zipfile(path):
                return False
            world = max(world, int(named["world"]))
            shards[named["kind"]].add(int(named["rank"]))
    if not world:
        return None
    return all(ranks == set(range(world)) for ranks in shards.values())


def is_whole(folder: Path) -> bool:
    """Whether a run can go on from a checkpoint: its actor and the place in the data, which is written last."""
    return zipfile.is_zipfile(folder / "data.pt") and has_whole_actor(folder) is not False


def holds_policy(folder: Path) -> bool:
    """Whether the policy of a checkpoint is there, and not known to be cut short."""
    if (whole := has_whole_actor(folder)) is None:
        return any(path.is_file() for path in folder.rglob("*"))
    return whole


def latest_step(run: Run) -> int:
    """The step of the newest whole checkpoint; 0 when there is none."""
    return next((step for step in reversed(checkpoint_steps(run)) if is_whole(step_folder(run, step))), 0)


def exportable_step(run: Run) -> int:
    """The newest step whose policy is there, whether a run can go on from it or not; 0 when there is none."""
    return next((step for step in reversed(checkpoint_steps(run)) if holds_policy(step_folder(run, step))), 0)


def _delete(run: Run, step: int) -> None:
    """Delete a checkpoint, under another name first: one that is half deleted is no checkpoint. Raises OSError."""
    folder = step_folder(run, step)
    gone = folder.with_name(DELETED + folder.name)
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


class CheckpointBound:
    """Keeps the whole run to `keep` checkpoints, the one that is being written included.

    verl counts those of its own process alone: after a resume it would keep as many again. Only whole checkpoints are
    deleted, the oldest first, and never the newest whole one.
    """

    def __init__(self, run: Run, *, keep: int | None) -> None:
        self._run, self._keep = run, keep
        self._refused: set[int] = set()

    def enforce(self) -> None:
        """Delete what is beyond the bound. What can not be deleted is reported once, and stays."""
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
    """Kill what earlier generations of this run left running, known by their marks; how many there were.

    What a copied folder names belongs to its original and is left alone. Raises LaunchError when a process does not
    end, or was started before the folder was moved.
    """
    if moved := [process.pid for run_id in run.moved_ids() for process in own_processes(run_id)]:
        raise LaunchError(
            f"{run.folder} was moved, and processes that were started before still run: {', '.join(map(str, moved))}",
            remedy="end them, then resume again",
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
        raise LaunchError(f"processes {pids} of the killed run do not end", remedy="end them, then resume again")
    for run_id in run.own_ids():
        shutil.rmtree(scratch_folder(run_id), ignore_errors=True)
    return len(left)


def require_ranks(run: Run, ranks: int) -> None:
    """Raises ConfigError when the newest whole checkpoint has another number of ranks: verl can not load that."""
    step = latest_step(run)
    names = (_SHARD.fullmatch(path.name) for path in (step_folder(run, step) / "actor").glob("*.pt"))
    worlds = sorted({int(named["world"]) for named in names if named})
    if worlds and ranks not in worlds:
        raise ConfigError(
            f"the checkpoint of step {step} was written by {worlds[-1]} ranks, and the recipe asks for {ranks}",
            remedy="resume with the `trainer.gpus` that the run was started with",
        )


def rewind(run: Run, *, keep: int | None) -> int:
    """Make the folder say what it would if the run had stopped at its newest whole checkpoint; that step.

    `keep` bounds the whole checkpoints, which the trainer does not remember when it is started again. Records, logs and
    a summary of the generation go to a folder of its own, and so does a checkpoint that is not whole but still holds a
    policy. Raises LaunchError, and changes nothing, when there are policies and no run can go on from any of them, or
    when the records can not be read.
    """
    step, earlier = latest_step(run), run.folder / f"generation-{len(run.started_ids()) - 1}"
    if not step and (policy := exportable_step(run)):
        raise LaunchError(
            f"no checkpoint in {run.checkpoints} is whole: the run can not go on from what it has trained",
            remedy=f"`s3-agent export-policy {run.folder} --step {policy} -o …` may still give its policy; to train "
            f"again from the beginning, move {run.checkpoints} away",
        )
    left = (run.metrics, run.episodes, run.logs, run.summary)
    kept = [path for path in left if path.exists() and not _in(earlier, path).exists()]
    metrics = list(_rows(run.metrics if run.metrics in kept else _in(earlier, run.metrics)))
    until = _counts_until(metrics, step, run.metrics)
    episodes = run.episodes if run.episodes in kept else _in(earlier, run.episodes)
    for _ in _rows(episodes):  # before anything is moved
        pass
    earlier.mkdir(exist_ok=True)
    # A rewind that was itself killed has moved some of them already.
    for path in kept:
        path.rename(_in(earlier, path))
    run.make_logs()
    _write(run.metrics, (line for line, row in metrics if step and row["step"] <= step))
    rows = _rows(_in(earlier, run.episodes))
    _write(run.episodes, (line for line, row in rows if row["finished_at"] <= until))
    _tidy(run, step, earlier=_in(earlier, run.checkpoints), keep=keep)
    return step


def _in(folder: Path, path: Path) -> Path:
    return folder / path.name


def _counts_until(metrics: list[tuple[bytes, dict[str, Any]]], step: int, path: Path) -> float:
    """The Unix time up to which records belong to the steps until `step`. Raises LaunchError.

    A step whose checkpoint is whole and which is not logged was the last one: the run was killed between the two.
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
            f"{path}: step {last['step']} has no time, by which its rollouts are known from later ones",
            remedy="the run was started by an earlier version of s3-agent: go on with it there, or start it again",
        )
    return last["at"]


def _tidy(run: Run, step: int, *, earlier: Path, keep: int | None) -> None:
    """Leave the whole checkpoints that count, the newest named by verl's marker."""
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


def _rows(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The lines of a log and what they say, without a last one that the kill cut short. Raises LaunchError."""
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
                    f"{path}:{number} is no whole record: {cause!r}",
                    remedy="look at the line; if it is torn, take it out and resume again",
                ) from cause
            yield line, row


def _write(path: Path, lines: Iterator[bytes]) -> None:
    with written_whole(path) as write:
        for line in lines:
            write(line)
