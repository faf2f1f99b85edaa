"""The exported policy: verl's own copy, or its shards merged; whole, trained and readable, or not at all."""

import errno
import json
import os
import re
import shutil
import stat
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner, Result

from s3_agent.cli.main import app
from s3_agent.data.files.appended import AppendedLines
from s3_agent.data.files.whole import follow_umask
from s3_agent.embedded import NANO_POLICY
from s3_agent.errors import ConfigError, S3AgentError
from s3_agent.processes import commands
from s3_agent.processes.run_folder import Run
from s3_agent.training.export import best_step, export_policy, keep_start, replace_policy
from s3_agent.training.resume import policies
from s3_agent.training.weights import largest_change

START = {"embed": np.arange(6, dtype="f4").reshape(2, 3), "lm_head.weight": np.ones(4, dtype="f4")}
TRAINED = {**START, "embed": START["embed"] + np.float32(0.5)}
MERGES = "import shutil, sys; shutil.copytree({source!r}, sys.argv[1])"
FAILS = "import pathlib, sys; pathlib.Path(sys.argv[1]).mkdir(); print('out of memory'); sys.exit(1)"


def model(folder: Path, weights: dict[str, np.ndarray], *, file: str = "model.safetensors", **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / file, {"format": "pt"})
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    run.create()
    run.trainer.write_text(json.dumps({"model": str(model(tmp_path / "start", START))}))
    for step in (1, 2):
        copy = run.checkpoints / f"global_step_{step}" / "actor" / "huggingface"
        copy.mkdir(parents=True)
        (copy / "config.json").write_text("{}")
        (copy.parents[1] / "data.pt").touch()
    (run.checkpoints / "latest_checkpointed_iteration.txt").write_text("2")
    return run


def copy_of(run: Run, step: int) -> Path:
    return run.checkpoints / f"global_step_{step}" / "actor" / "huggingface"


def merger(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(commands, "merge_command", lambda shards, target: [sys.executable, "-c", program, str(target)])


def merges(monkeypatch: pytest.MonkeyPatch, folder: Path, weights: dict[str, np.ndarray]) -> None:
    merger(monkeypatch, MERGES.format(source=str(model(folder, weights))))


def test_the_copy_that_the_checkpoint_has_is_taken(run: Run, tmp_path: Path) -> None:
    model(copy_of(run, 1), TRAINED, file="model-00001-of-00002.safetensors")
    exported = export_policy(run, tmp_path / "out", step=1)
    assert (exported.step, exported.note) == (1, "")
    found = load_file(tmp_path / "out" / "model-00001-of-00002.safetensors")
    assert np.array_equal(found["embed"], TRAINED["embed"])


def test_shards_are_merged_where_there_is_no_copy(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merges(monkeypatch, tmp_path / "merged", TRAINED)
    assert export_policy(run, tmp_path / "out").step == 2, "the last checkpoint"
    assert largest_change(tmp_path / "merged", tmp_path / "out") == 0


def test_a_merger_that_fails_leaves_no_policy(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merger(monkeypatch, FAILS)
    with pytest.raises(S3AgentError, match=r"could not be merged[\s\S]*out of memory"):
        export_policy(run, tmp_path / "out")
    assert not [*tmp_path.glob("out*")]


def test_what_can_not_be_exported_is_told(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no checkpoint of step 7") as caught:
        export_policy(run, tmp_path / "out", step=7)
    assert "can be exported: 1, 2" in caught.value.remedy
    with pytest.raises(ConfigError, match="exists"):
        export_policy(run, tmp_path)
    shutil.rmtree(run.checkpoints)
    with pytest.raises(ConfigError, match="has no checkpoint\n") as caught:
        export_policy(run, tmp_path / "out")
    assert "no step can be exported: read logs/trainer.log" in caught.value.remedy


def validated(run: Run, *results: tuple[int, float]) -> None:
    rows = [json.dumps({"step": step, "data": {"s3/val/accuracy": result}}) for step, result in results]
    run.metrics.write_text("\n".join(rows) + '\n{"step": 9, "da')


@pytest.fixture
def guarded(run: Run) -> Run:
    """Step 5 of a run validated best, and its own checkpoint is deleted; step 8 was moved away by a stop."""
    for step in (1, 2):
        model(copy_of(run, step), TRAINED)
    for place, step in ((run.best, 5), (run.after_best, 8), (run.after_best, 2)):
        weights = {**TRAINED, "embed": START["embed"] + step}
        (model(place / f"global_step_{step}" / "actor" / "huggingface", weights).parents[1] / "data.pt").touch()
    validated(run, (0, 0.1), (1, 0.2), (5, 0.7), (2, 0.3), (8, 0.6))
    return run


def test_a_step_is_found_wherever_the_guard_keeps_it(guarded: Run, tmp_path: Path) -> None:
    assert {step: folder.parent for step, folder in policies(guarded).items()} == {
        1: guarded.checkpoints,
        2: guarded.checkpoints,
        5: guarded.best,
        8: guarded.after_best,
    }
    for step in (5, 8):
        assert export_policy(guarded, tmp_path / f"out-{step}", step=step).step == step
        assert load_file(tmp_path / f"out-{step}" / "model.safetensors")["embed"][0, 0] == step
    with pytest.raises(ConfigError, match="no checkpoint of step 6") as caught:
        export_policy(guarded, tmp_path / "out", step=6)
    assert caught.value.remedy == "steps that can be exported: 1, 2, 5, 8"
    assert export_policy(guarded, tmp_path / "out").step == 2, "the last one of the run itself"


def exported(run: Run, out: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["export-policy", str(run.folder), "-o", str(out), *arguments])


def test_the_policy_that_validated_best_is_exported_by_its_name(guarded: Run, tmp_path: Path) -> None:
    done = exported(guarded, tmp_path / "out", "--best")
    assert (done.exit_code, done.output) == (0, f"{tmp_path / 'out'}: the policy after step 5\n")
    assert load_file(tmp_path / "out" / "model.safetensors")["embed"][0, 0] == 5
    assert exported(guarded, tmp_path / "both", "--best", "--step", "1").exit_code == 2


@pytest.mark.parametrize(
    ("results", "found"),
    [
        ([(1, 0.5), (2, 0.4)], 1),
        ([(0, 0.5), (1, 0.5), (2, 0.5)], 1),
        ([(3, 0.5), (2, 0.5)], 2),
        ([], r"has no validation.*give a step; steps that can be exported: 1, 2"),
        ([(0, 0.5), (1, 0.4)], r"began with validated best \(0\.500\).*use .*start"),
        ([(3, 0.5), (2, 0.4), (1, 0.3)], r"step 3 validated best \(0\.500\).*step 2 .*\(0\.400\): --step 2"),
        ([(3, 0.5)], r"step 3 validated best.*was not kept.*exported: 1, 2"),
    ],
)
def test_the_best_step_is_one_that_can_be_exported(
    run: Run, results: list[tuple[int, float]], found: int | str
) -> None:
    validated(run, *results)
    if isinstance(found, int):
        assert best_step(run) == found
        return
    with pytest.raises(ConfigError) as caught:
        best_step(run)
    assert re.search(found, f"{caught.value.message} {caught.value.remedy}")


def shards(run: Run, step: int) -> Path:
    """The files of a checkpoint as verl's FSDP engine names them."""
    actor = run.checkpoints / f"global_step_{step}" / "actor"
    for path in (*(actor / f"{kind}_world_size_1_rank_0.pt" for kind in ("model", "optim", "extra_state")),):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data", b"weights" * 100)
    return actor


def test_a_checkpoint_that_was_cut_short_is_not_exported(run: Run, tmp_path: Path) -> None:
    (shards(run, 2) / "model_world_size_1_rank_0.pt").write_bytes(b"PK")
    model(copy_of(run, 1), TRAINED)
    with pytest.raises(ConfigError, match="was cut short"):
        export_policy(run, tmp_path / "out", step=2)
    assert export_policy(run, tmp_path / "out").step == 1, "the newest that is whole"


@pytest.mark.parametrize("lost", ["data.pt", "actor/optim_world_size_1_rank_0.pt"])
def test_a_copy_that_may_be_cut_short_is_merged_from_the_shards(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    actor = shards(run, 2)
    (actor.parent / lost).unlink()
    (actor / "huggingface" / "model.safetensors").write_text("torn")
    merges(monkeypatch, tmp_path / "merged", TRAINED)
    assert export_policy(run, tmp_path / "out").step == 2
    assert largest_change(tmp_path / "merged", tmp_path / "out") == 0


def test_the_policy_of_a_run_stays_until_the_next_is_whole(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = model(copy_of(run, 2), TRAINED)
    replace_policy(run)
    model(copy_of(run, 2), {**START, "embed": START["embed"] * 2})
    with monkeypatch.context() as full:
        full.setattr(shutil, "copytree", raises_no_space)
        with pytest.raises(S3AgentError, match="No space left"):
            replace_policy(run)
    assert np.array_equal(load_file(run.policy / "model.safetensors")["embed"], TRAINED["embed"])
    replace_policy(run)
    assert largest_change(first, run.policy) == 0


def raises_no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def without(name: str) -> dict[str, np.ndarray]:
    return {key: value for key, value in TRAINED.items() if key != name}


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        (without("embed"), r"1 missing \(embed\)"),
        ({**TRAINED, "base_model.model.embed.lora_A.weight": np.ones(2, dtype="f4")}, r"1 unexpected \(base_model"),
        ({**TRAINED, "embed": np.ones((3, 3), dtype="f4")}, r"1 of another shape \(embed\)"),
        ({f"base_model.{n}": np.ones(2, dtype="f4") for n in range(94)}, r"2 missing .*94 unexpected \(.*, …\)"),
    ],
)
def test_weights_of_another_model_are_not_exported(
    run: Run, tmp_path: Path, weights: dict[str, np.ndarray], told: str
) -> None:
    model(copy_of(run, 2), weights)
    with pytest.raises(ConfigError, match=told):
        export_policy(run, tmp_path / "out")
    assert not [*tmp_path.glob("out*")]


@pytest.mark.parametrize("tied", [True, False])
def test_an_output_layer_that_is_the_embedding_may_be_left_out(run: Run, tmp_path: Path, tied: bool) -> None:
    model(tmp_path / "start", START, tie_word_embeddings=tied)
    model(copy_of(run, 2), without("lm_head.weight"), tie_word_embeddings=tied)
    if tied:
        assert export_policy(run, tmp_path / "out").note == ""
    else:
        with pytest.raises(ConfigError, match=r"missing \(lm_head"):
            export_policy(run, tmp_path / "out")


def test_what_no_trainer_loads_may_be_missing(run: Run, tmp_path: Path) -> None:
    computed = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, dtype="f4")}
    model(tmp_path / "start", {**START, **computed, "mtp.0.weight": np.ones(2, dtype="f4")})
    model(copy_of(run, 2), TRAINED)
    assert export_policy(run, tmp_path / "out").note == ""


def logged(run: Run, *rows: tuple[int, float, float]) -> None:
    lines = [json.dumps({"step": s, "data": {"actor/grad_norm": norm, "actor/lr": rate}}) for s, norm, rate in rows]
    run.metrics.write_text("\n".join(lines) + '\n{"step": 3, "act')


@pytest.mark.parametrize("rows", [[(1, 0.0, 1e-6)], [(1, 2.0, 0.0)], [(3, 2.0, 1e-6)], [(1, float("nan"), 1e-6)], []])
def test_weights_that_nothing_moved_are_exported_and_it_is_told(
    run: Run, tmp_path: Path, rows: list[tuple[int, float, float]]
) -> None:
    logged(run, *rows)
    model(copy_of(run, 2), START)
    assert "all weights equal those of the starting model" in export_policy(run, tmp_path / "out", step=2).note


def test_weights_that_did_not_move_although_they_were_trained_are_refused(run: Run, tmp_path: Path) -> None:
    logged(run, (1, 0.0, 1e-6), (2, 0.3, 1e-6))
    model(copy_of(run, 2), START)
    with pytest.raises(S3AgentError, match="the trained weights are not in it"):
        export_policy(run, tmp_path / "out", step=2)
    model(copy_of(run, 1), START)
    assert export_policy(run, tmp_path / "out", step=1).note, "no gradient until then"


@pytest.mark.parametrize("named", [{"model": "/nowhere/at/all"}, {}])
def test_a_start_that_is_not_here_is_told(run: Run, tmp_path: Path, named: dict[str, str]) -> None:
    run.trainer.write_text(json.dumps(named))
    model(copy_of(run, 2), TRAINED)
    note = export_policy(run, tmp_path / "out").note
    assert "were not compared" in note and named.get("model", "") in note


def test_rounding_to_a_narrower_precision_moves_nothing(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as load
    from safetensors.torch import save_file as save

    wide = {"w": torch.randn(4096), "edge": torch.tensor([1.00390625, 1.01171875, -1.00390625, 0.0, 1e-40])}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for folder, weights in (("wide", wide), ("narrow", {name: value.to(dtype) for name, value in wide.items()})):
            (tmp_path / folder).mkdir(exist_ok=True)
            save(weights, tmp_path / folder / "model.safetensors")
        assert largest_change(tmp_path / "wide", tmp_path / "narrow") == 0, dtype
        # The other way round, what was narrow is exact.
        narrow = load(tmp_path / "narrow" / "model.safetensors")
        expected = max(float((wide[name] - narrow[name].float()).abs().max()) for name in wide)
        assert largest_change(tmp_path / "narrow", tmp_path / "wide") == pytest.approx(expected)


@pytest.mark.parametrize("cut", [4, 40, -3])
def test_a_weights_file_that_is_cut_short_is_not_exported(run: Run, tmp_path: Path, cut: int) -> None:
    path = model(copy_of(run, 2), TRAINED) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ConfigError, match="not a complete safetensors file"):
        export_policy(run, tmp_path / "out")


@pytest.fixture(params=[0o022, 0o002, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_what_leaves_a_run_can_be_read_by_whom_the_umask_lets(run: Run, umask: int, tmp_path: Path) -> None:
    shutil.copytree(NANO_POLICY, copy_of(run, 2), dirs_exist_ok=True)
    run.trainer.write_text(json.dumps({"model": str(NANO_POLICY)}))
    shutil.copytree(copy_of(run, 2), kept := run.best / "global_step_1" / "actor" / "huggingface")
    shutil.rmtree(copy_of(run, 1).parents[1])
    for path in (*copy_of(run, 2).rglob("*"), *kept.rglob("*")):
        path.chmod(0o600)  # as safetensors writes it
    replace_policy(run)
    AppendedLines(run.episodes).close()
    for folder in (run.policy, copy_of(run, 2), kept):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o777 & ~umask
    for path in (*run.policy.iterdir(), *copy_of(run, 2).iterdir(), *kept.iterdir(), run.episodes):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask, path
    assert stat.S_IMODE(run.logs.stat().st_mode) == 0o700, "logs hold keys"


def test_a_start_that_is_kept_is_written_as_a_trained_policy(run: Run, umask: int, tmp_path: Path) -> None:
    start = Path(shutil.copytree(NANO_POLICY, tmp_path / "hub"))
    for path in start.rglob("*"):
        path.chmod(0o600)
    run.trainer.write_text(json.dumps({"model": str(start)}))
    assert keep_start(run).step == 0
    assert {stat.S_IMODE(path.stat().st_mode) for path in run.policy.iterdir()} == {0o666 & ~umask}
    config = json.loads((run.policy / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"], "for transformers 4 and 5"


def test_permissions_of_what_a_link_points_to_stay(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key")
    secret.chmod(0o600)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(secret)
    follow_umask(tmp_path / "folder")
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
