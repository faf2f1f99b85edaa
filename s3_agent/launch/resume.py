"""What a run goes on from after it was killed: its last whole checkpoint, and nothing of what came after it.

verl writes `latest_checkpointed_iteration.txt` when a checkpoint is whole and before the next step begins; its time
parts what counts from what will be played again. The records of the killed generation are kept beside the run's.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from s3_agent.errors import LaunchError
from s3_agent.launch.run import Run
from s3_agent.launch.stack import own_processes, scratch_folder

LATEST = "latest_checkpointed_iteration.txt"
STEP_FOLDER = "global_step_"
KILL_S = 20.0


def checkpoint_steps(run: Run) -> list[int]:
    """The steps that have an actor's checkpoint, whole or not, in order."""
    found = run.checkpoints.glob(f"{STEP_FOLDER}*/actor")
    return sorted(int(path.parent.name.removeprefix(STEP_FOLDER)) for path in found)


def latest_step(run: Run) -> int:
    """The step of the last whole checkpoint; 0 when there is none."""
    try:
        step = int((run.checkpoints / LATEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0
    return step if (run.checkpoints / f"{STEP_FOLDER}{step}" / "data.pt").exists() else 0


def end_leftovers(run: Run) -> int:
    """Kill what earlier generations of this run left running, known by their marks; how many there were.

    Raises LaunchError when one does not end.
    """
    left = [process for run_id in run.started_ids() for process in own_processes(run_id)]
    for process in left:
        try:
            process.kill()
        except psutil.Error:
            continue
    _, alive = psutil.wait_procs(left, timeout=KILL_S)
    if alive:
        pids = ", ".join(str(process.pid) for process in alive)
        raise LaunchError(f"processes {pids} of the killed run do not end", remedy="end them, then resume again")
    for run_id in run.started_ids():
        shutil.rmtree(scratch_folder(run_id), ignore_errors=True)
    return len(left)


def rewind(run: Run, *, keep: int | None) -> int:
    """Make the folder say what it would if the run had stopped at its last whole checkpoint; that step.

    `keep` bounds the earlier checkpoints, which the trainer forgets of when it is started again. Nothing but
    checkpoints is deleted: records and logs of the generation go to a folder of its own.
    """
    step, earlier = latest_step(run), run.folder / f"generation-{len(run.started_ids()) - 1}"
    until = (run.checkpoints / LATEST).stat().st_mtime if step else 0.0
    # A rewind that was itself killed has moved some of them already.
    earlier.mkdir(exist_ok=True)
    for path in (run.metrics, run.episodes, run.logs):
        if path.exists() and not (earlier / path.name).exists():
            path.rename(earlier / path.name)
    run.make_logs()
    _cut(earlier / run.metrics.name, run.metrics, lambda row: row["step"] <= step and step > 0)
    _cut(earlier / run.episodes.name, run.episodes, lambda row: row["finished_at"] <= until)
    steps = checkpoint_steps(run)
    whole = [found for found in steps if found <= step]
    for found in set(steps) - set(whole[-keep:] if keep else whole):
        shutil.rmtree(run.checkpoints / f"{STEP_FOLDER}{found}")
    return step


def _cut(source: Path, target: Path, counts: Callable[[dict[str, Any]], bool]) -> None:
    """The rows of `source` that still count; a last line that the kill cut short does not."""
    if not source.exists():
        return
    partial = target.with_suffix(".partial")
    with source.open(encoding="utf-8") as lines, partial.open("w", encoding="utf-8") as kept:
        for line in lines:
            if line.endswith("\n") and counts(json.loads(line)):
                kept.write(line)
    partial.replace(target)
