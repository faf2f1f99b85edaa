"""The exported policy: verl's own copy, or its shards merged; whole or not at all."""

import errno
import os
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from s3_agent.errors import ConfigError, S3AgentError
from s3_agent.launch import commands
from s3_agent.launch.export import export_policy, replace_policy
from s3_agent.launch.run import Run

MERGES = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); p.mkdir(); (p / 'model.safetensors').write_text('merged')"
FAILS = "import pathlib, sys; pathlib.Path(sys.argv[1]).mkdir(); print('out of memory'); sys.exit(1)"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    run.create()
    for step in (1, 2):
        copy = run.checkpoints / f"global_step_{step}" / "actor" / "huggingface"
        copy.mkdir(parents=True)
        (copy / "config.json").write_text("{}")
        (copy.parents[1] / "data.pt").touch()
    (run.checkpoints / "latest_checkpointed_iteration.txt").write_text("2")
    return run


def merger(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(commands, "merge_command", lambda shards, target: [sys.executable, "-c", program, str(target)])


def test_the_copy_that_the_checkpoint_has_is_taken(run: Run, tmp_path: Path) -> None:
    weights = run.checkpoints / "global_step_1" / "actor" / "huggingface" / "model-00001-of-00002.safetensors"
    weights.write_text("copied")
    assert export_policy(run, tmp_path / "out", step=1) == 1
    assert (tmp_path / "out" / weights.name).read_text() == "copied"


def test_shards_are_merged_where_there_is_no_copy(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merger(monkeypatch, MERGES)
    assert export_policy(run, tmp_path / "out") == 2, "the last checkpoint"
    assert (tmp_path / "out" / "model.safetensors").read_text() == "merged"


def test_a_merger_that_fails_leaves_no_policy(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merger(monkeypatch, FAILS)
    with pytest.raises(S3AgentError, match=r"could not be merged[\s\S]*out of memory"):
        export_policy(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_can_not_be_exported_is_told(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no checkpoint of step 7") as caught:
        export_policy(run, tmp_path / "out", step=7)
    assert "there are: 1, 2" in caught.value.remedy
    with pytest.raises(ConfigError, match="exists"):
        export_policy(run, tmp_path)


def shards(run: Run, step: int) -> Path:
    """The files of a checkpoint as verl's FSDP engine names them."""
    actor = run.checkpoints / f"global_step_{step}" / "actor"
    for path in (*(actor / f"{kind}_world_size_1_rank_0.pt" for kind in ("model", "optim", "extra_state")),):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data", b"weights" * 100)
    return actor


def test_a_checkpoint_that_was_cut_short_is_not_exported(run: Run, tmp_path: Path) -> None:
    (shards(run, 2) / "optim_world_size_1_rank_0.pt").write_bytes(b"PK")
    (run.checkpoints / "global_step_1" / "actor" / "huggingface" / "model.safetensors").write_text("whole")
    with pytest.raises(ConfigError, match="was cut short"):
        export_policy(run, tmp_path / "out", step=2)
    assert export_policy(run, tmp_path / "out") == 1, "the newest that is whole"


def test_a_copy_that_may_be_cut_short_is_merged_from_the_shards(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = shards(run, 2)
    (actor.parent / "data.pt").unlink()  # which is written after the copy
    (actor / "huggingface" / "model.safetensors").write_text("torn")
    merger(monkeypatch, MERGES)
    assert export_policy(run, tmp_path / "out") == 2
    assert (tmp_path / "out" / "model.safetensors").read_text() == "merged"


def test_the_policy_of_a_run_stays_until_the_next_is_whole(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = run.checkpoints / "global_step_2" / "actor" / "huggingface" / "model.safetensors"
    weights.write_text("first")
    replace_policy(run)
    weights.write_text("second")
    with monkeypatch.context() as full:
        full.setattr(shutil, "copytree", raises_no_space)
        with pytest.raises(S3AgentError, match="No space left"):
            replace_policy(run)
    assert (run.policy / "model.safetensors").read_text() == "first"
    replace_policy(run)
    assert (run.policy / "model.safetensors").read_text() == "second"


def raises_no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
