"""The main job from the guard's stop to the summary: uninterrupted, and killed in between and resumed.

Everything is real except the processes: a fake stands for them and writes what a trainer and a pool leave.
"""

import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from s3_agent.cli.main import app
from s3_agent.data.tasks import load_tasks
from s3_agent.embedded import NANO_POLICY
from s3_agent.errors import LaunchError
from s3_agent.evaluation.summary import Summary
from s3_agent.processes.parts import Part
from s3_agent.processes.run_folder import Run
from s3_agent.recipe import Recipe, load_recipe
from s3_agent.rollout.episode_log import EpisodeRecord
from s3_agent.training import export, job, side_by_side
from s3_agent.training.job import resume_job, train_job
from s3_agent.training.resume import checkpoint_steps
from s3_agent.types import Task
from tests.unit.training.test_resume import checkpoint

QUESTIONS = 10
BEST_AT_2 = (0.5, 0.6, 0.7, 0.65, 0.4, 0.3)
BEST_AT_0 = (0.6, 0.5, 0.4)


class Killed(BaseException):
    """Stands for a SIGKILL: nothing of the job handles it."""


class FakeTrainer:
    """Leaves what a trainer and its pool leave: a validation and a checkpoint at every step, two checkpoints at most.

    `started` counts its starts. It ends after the last of `accuracies`, which begin with that of step 0; with `late`,
    its last step is logged only when the job no longer looks. With `deletes=False` it leaves all checkpoints, as verl
    does with those of an earlier start.
    """

    def __init__(self, accuracies: Sequence[float], *, late: bool = False, deletes: bool = True) -> None:
        self.accuracies, self.late, self.deletes = accuracies, late, deletes
        self.started = 0
        self._clock = itertools.count(1.0)

    def train(self, run: Run, tick: Callable[[], None]) -> None:
        self.started += 1
        done = max(checkpoint_steps(run), default=0)
        first = done + 1 if done else 0
        for step in range(first, len(self.accuracies)):
            self._step(run, step)
            if not (self.late and step == len(self.accuracies) - 1):
                tick()

    def _step(self, run: Run, step: int) -> None:
        tasks, accuracy = load_tasks(run.validation), self.accuracies[step]
        data: dict[str, Any] = {"s3/val/accuracy": accuracy}
        if step:
            self._play(run, tasks[:4], [1.0, 0.0, 1.0, 0.0], is_train=True)
            data |= {"training/reward": 0.5, "training/n_sample": 4, "training/n_rollouts": 4}
            data |= {"training/n_truncated_sample": 0, "actor/grad_norm": 0.1, "actor/lr": 1e-5}
            copied = checkpoint(run, step, ranks=1) / "actor" / "huggingface"
            write_policy(copied, step)
            if self.deletes:
                shutil.rmtree(run.checkpoints / f"global_step_{step - 2}", ignore_errors=True)
        right = round(accuracy * len(tasks))
        self._play(run, tasks, [float(number < right) for number in range(len(tasks))])
        with run.metrics.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"step": step, "at": next(self._clock), "data": data}) + "\n")

    def _play(self, run: Run, tasks: Sequence[Task], scores: Sequence[float], *, is_train: bool = False) -> None:
        with run.episodes.open("a", encoding="utf-8") as lines:
            for task, score in zip(tasks, scores, strict=True):
                at = next(self._clock)
                record = EpisodeRecord(
                    rollout_id=f"rollout-{at}",
                    attempt_id="attempt",
                    attempts=1,
                    is_train=is_train,
                    state="succeeded",
                    task=task,
                    reward=score,
                    accuracy=score,
                    started_at=at,
                    finished_at=at,
                )
                lines.write(record.model_dump_json() + "\n")


def write_policy(folder: Path, step: int) -> None:
    """A policy whose only weight is the step after which the fake trainer has it; step 0 is the start."""
    shutil.copytree(NANO_POLICY, folder)
    save_file({"step": np.full(2, step, dtype="f4")}, folder / "model.safetensors", {"format": "pt"})


def step_of(policy: Path) -> int:
    """The step of the fake trainer whose policy this is."""
    return int(load_file(policy / "model.safetensors")["step"][0])


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    write_policy(tmp_path / "start", 0)
    settings = [
        f"policy.model={tmp_path / 'start'}",
        f"runs={tmp_path / 'runs'}",
        f"data.validation_size={QUESTIONS}",
        *("trainer.steps=9", "trainer.validate_every=1", "trainer.guard.action=stop", "trainer.questions_per_step=2"),
        *("trainer.rollouts_per_question=2", "trainer.questions_per_update=2", "trainer.checkpoints_kept=2"),
        *("retriever.port=0", "generator.port=0", "gateway.port=0"),
    ]
    return load_recipe("cpu", settings)


@pytest.fixture
def with_trainer(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeTrainer], FakeTrainer]:
    """Puts a fake trainer in the place of all processes."""

    def place(trainer: FakeTrainer) -> FakeTrainer:
        class FakeStack:
            starting: Sequence[str] = ()

            def __init__(self, parts: Sequence[Part], *, run_id: str) -> None:
                self.run_id, self.start_up_s = run_id, {"trainer": 1.0}
                [self._run] = [Run(part.log.parent.parent) for part in parts if part.name == "trainer"]

            def __enter__(self) -> Self:
                return self

            def __exit__(self, *_: object) -> None:
                """Nothing was started."""

            def run(self, _: str, *, tick: Callable[[], None]) -> None:
                trainer.train(self._run, tick)

        monkeypatch.setattr(job, "Stack", FakeStack)
        monkeypatch.setattr(job, "listening", lambda _: [])
        return trainer

    return place


Place = Callable[[FakeTrainer], FakeTrainer]


def result(run: Run) -> dict[str, Any]:
    """What a run ends with, without what depends on the time."""
    summary = Summary.model_validate_json(run.summary.read_text(encoding="utf-8"))
    return {
        **summary.model_dump(exclude={"wall_seconds", "start_up_seconds"}),
        "policy": step_of(run.policy),
        "checkpoints": checkpoint_steps(run),
        "after-best": sorted(path.name for path in run.after_best.iterdir()),
    }


def kill(monkeypatch: pytest.MonkeyPatch, where: str, recipe: Recipe, name: str) -> None:
    """Train until the job reaches `where`, a function of the job or the export, and is killed there."""

    def killed(*_: object, **__: object) -> None:
        raise Killed

    module = job if hasattr(job, where) else export
    with monkeypatch.context() as patched:
        patched.setattr(module, where, killed)
        with pytest.raises(Killed):
            train_job(recipe, name=name)


@pytest.mark.parametrize(("accuracies", "best", "after"), [(BEST_AT_2, 2, [4, 5]), (BEST_AT_0, 0, [1, 2])])
def test_a_stopped_run_ends_with_its_best_policy(
    recipe: Recipe, with_trainer: Place, accuracies: Sequence[float], best: int, after: list[int]
) -> None:
    with_trainer(FakeTrainer(accuracies))
    assert train_job(recipe, name="whole") == 0
    found = result(Run(recipe.runs / "whole"))
    assert found["policy"] == best
    assert found["checkpoints"] == ([best] if best else [])
    assert found["after-best"] == [f"global_step_{step}" for step in after]
    assert (found["guard"]["stopped"], found["guard"]["best_step"]) == (True, best)
    assert found["val_after"] == pytest.approx(accuracies[best])
    assert (found["best_step"], found["best_validation"], found["kept_validation"]) == (best, *[accuracies[best]] * 2)
    assert found["steps"] == len(accuracies) - 1 and found["skipped_steps"] == 0


@pytest.mark.parametrize("accuracies", [BEST_AT_2, BEST_AT_0], ids=["best at 2", "best at 0"])
@pytest.mark.parametrize("where", ["go_back_to_best", "_copy", "make_portable", "summarize", "_close"])
def test_a_run_that_was_killed_after_its_stop_ends_as_if_it_was_not(
    recipe: Recipe, with_trainer: Place, monkeypatch: pytest.MonkeyPatch, accuracies: Sequence[float], where: str
) -> None:
    trainer = with_trainer(FakeTrainer(accuracies))
    train_job(recipe, name="whole")
    kill(monkeypatch, where, recipe, "killed")
    run = Run(recipe.runs / "killed")
    (run.folder / ("policy.new.partial" if accuracies == BEST_AT_2 else "policy.new")).mkdir(exist_ok=True)
    with run.metrics.open("a") as lines:
        lines.write('{"step": 6, "at')
    assert not run.finished and trainer.started == 2
    assert resume_job(str(run.folder), skip_doctor=True) == 0
    assert trainer.started == 2, "nothing is trained past the stop"
    assert result(run) == result(Run(recipe.runs / "whole"))
    assert not list(run.folder.glob("policy.new*"))


def test_a_killed_comparison_ends_with_the_same_result(
    recipe: Recipe, with_trainer: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trainer = with_trainer(FakeTrainer(BEST_AT_2))
    train_job(recipe, name="whole")
    kill(monkeypatch, "go_back_to_best", recipe, "cpu")
    one = side_by_side.Job("s3", recipe)
    services = recipe.model_copy(
        update={
            "retriever": recipe.retriever.model_copy(update={"url": "http://127.0.0.1:9"}),
            "generator": recipe.generator.model_copy(update={"url": "http://127.0.0.1:9"}),
        }
    )
    command = side_by_side._command(one, services, tmp_path)
    done = CliRunner().invoke(app, command[command.index("train") :])
    assert done.exit_code == 0, done.output
    assert trainer.started == 2
    assert result(one.run) == result(Run(recipe.runs / "whole"))


def test_a_run_with_a_summary_is_trained_on_from_its_best(recipe: Recipe, with_trainer: Place) -> None:
    trainer = with_trainer(FakeTrainer(BEST_AT_2))
    train_job(recipe, name="run")
    run = Run(recipe.runs / "run")
    trainer.accuracies = (*BEST_AT_2[:3], 0.72, 0.74, 0.76, 0.78, 0.8, 0.82, 0.84)
    assert resume_job(str(run.folder), skip_doctor=True) == 0
    assert trainer.started == 2 and step_of(run.policy) == 9
    summary = Summary.model_validate_json(run.summary.read_text())
    assert (summary.guard, summary.best_step, summary.steps) == (None, 9, 9)
    moved = run.folder / "generation-0"
    assert json.loads((moved / "guard.json").read_text())["stopped"]
    assert sorted(path.name for path in (moved / "after-best").iterdir()) == ["global_step_4", "global_step_5"]
    assert not list(run.after_best.iterdir()), "their steps were trained again"


def test_a_trip_at_the_last_step_is_seen_although_the_trainer_has_ended(recipe: Recipe, with_trainer: Place) -> None:
    with_trainer(FakeTrainer(BEST_AT_2, late=True))
    train_job(recipe, name="run")
    found = result(Run(recipe.runs / "run"))
    assert found["policy"] == 2 and found["guard"]["step"] == 5


def test_the_bound_of_checkpoints_holds_after_the_last_step_too(recipe: Recipe, with_trainer: Place) -> None:
    with_trainer(FakeTrainer([0.1 * step for step in range(10)], late=True, deletes=False))
    train_job(recipe, name="run")
    run = Run(recipe.runs / "run")
    assert checkpoint_steps(run) == [8, 9]
    assert [path.name for path in run.best.iterdir()] == ["global_step_9"], "the last one is kept before the run ends"


def test_a_stop_whose_best_checkpoint_is_gone_names_two_ways_on(
    recipe: Recipe, with_trainer: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = with_trainer(FakeTrainer(BEST_AT_2))
    kill(monkeypatch, "go_back_to_best", recipe, "run")
    run = Run(recipe.runs / "run")
    shutil.rmtree(run.best)
    with pytest.raises(LaunchError, match="step 2 validated best") as caught:
        resume_job(str(run.folder), skip_doctor=True)
    assert "export-policy" in caught.value.remedy and str(run.guard) in caught.value.remedy
    run.guard.unlink()
    trainer.accuracies = (*BEST_AT_2, 0.66, 0.67, 0.68, 0.69)
    assert resume_job(str(run.folder), skip_doctor=True) == 0
    assert step_of(run.policy) == 9


def test_a_warning_stays_in_the_summary_of_a_resumed_run(recipe: Recipe, with_trainer: Place) -> None:
    guard = recipe.trainer.guard.model_copy(update={"action": "warn"})
    recipe = recipe.model_copy(
        update={"trainer": recipe.trainer.model_copy(update={"guard": guard, "checkpoint_every": 1, "steps": 5})}
    )
    with_trainer(FakeTrainer(BEST_AT_2))
    train_job(recipe, name="run")
    run = Run(recipe.runs / "run")
    before = Summary.model_validate_json(run.summary.read_text())
    assert before.guard is not None and (before.guard.step, before.guard.stopped) == (5, False)
    assert (before.best_step, before.best_validation, before.kept_validation) == (2, 0.7, 0.3)
    assert resume_job(str(run.folder), skip_doctor=True) == 0
    assert Summary.model_validate_json(run.summary.read_text()).guard == before.guard
