"""A killed run's folder is brought back to its last whole checkpoint; records of later steps are kept apart."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from s3_agent.errors import ConfigError
from s3_agent.launch.resume import checkpoint_steps, end_leftovers, latest_step, rewind
from s3_agent.launch.run import Run
from s3_agent.launch.stack import MARKER, scratch_folder

SAVED = 1000.0


def checkpoint(run: Run, step: int, *, whole: bool = True) -> None:
    actor = run.checkpoints / f"global_step_{step}" / "actor"
    actor.mkdir(parents=True)
    if whole:
        (actor.parent / "data.pt").touch()
        latest = run.checkpoints / "latest_checkpointed_iteration.txt"
        latest.write_text(str(step))
        os.utime(latest, (SAVED, SAVED))


@pytest.fixture
def killed(tmp_path: Path) -> Run:
    """A run that was killed in step 3, while its checkpoint was written; the one of step 2 is whole."""
    run = Run(tmp_path / "run")
    run.create()
    run.start_generation("run-aaaa")
    for step in (1, 2):
        checkpoint(run, step)
    checkpoint(run, 3, whole=False)
    rows = [json.dumps({"step": step, "data": {}}) for step in range(4)]
    run.metrics.write_text("\n".join(rows) + '\n{"step": 4, "da')
    ends = [("a", SAVED - 9), ("b", SAVED), ("c", SAVED + 5)]
    run.episodes.write_text("".join(json.dumps({"rollout_id": i, "finished_at": t}) + "\n" for i, t in ends))
    (run.logs / "trainer.log").write_text("killed")
    return run


def test_only_what_came_before_the_checkpoint_counts(killed: Run) -> None:
    assert rewind(killed, keep=None) == 2
    assert [json.loads(row)["step"] for row in killed.metrics.read_text().splitlines()] == [0, 1, 2]
    assert [json.loads(row)["rollout_id"] for row in killed.episodes.read_text().splitlines()] == ["a", "b"]
    assert checkpoint_steps(killed) == [1, 2], "the one that was cut short is gone"
    before = killed.folder / "generation-0"
    assert len((before / "episodes.jsonl").read_text().splitlines()) == 3
    assert (before / "logs" / "trainer.log").read_text() == "killed"
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


def test_a_checkpoint_that_is_named_but_gone_is_none(killed: Run) -> None:
    (killed.checkpoints / "global_step_2" / "data.pt").unlink()
    assert latest_step(killed) == 0


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
    with killed.held(), pytest.raises(ConfigError, match="is at work"), Run(killed.folder).held():
        pass
    with killed.held():
        pass
