"""The asynchronous recipe's twin: what is carried over, what waits while the weights change, and what a kill leaves."""

import json
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from s3_agent.data.tasks import read_jsonl
from s3_agent.evaluation.summary import Summary, training_rows
from s3_agent.processes.run_folder import Run
from s3_agent.training.resume import checkpoint_steps
from s3_agent.training.twin import load_twin
from tests.e2e.conftest import ROOT, Services
from tests.e2e.test_recipes import command, lines, records, train, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

RECIPE = "s3_async_8x40gb"
TRAINER = load_twin(RECIPE).trainer


@pytest.fixture(scope="module")
def trained(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(services, tmp_path_factory.mktemp("async"), RECIPE)


def summary_of(run: Run) -> Summary:
    return Summary.model_validate_json(run.summary.read_text())


def test_rollouts_are_carried_over_and_each_becomes_one_row(trained: Run) -> None:
    behind = TRAINER.rollouts_in_play - TRAINER.rollouts_per_step
    first, second = training_rows(read_jsonl(trained.metrics))
    for row in (first, second):
        assert row["training/n_sample_trained"] == row["training/n_rollouts"] == TRAINER.rollouts_per_step
        assert row["training/async/n_new_carry_over_rollouts"] == behind > 0
        assert row["s3/train/rollouts_untrained"] == row["s3/train/rows_dropped"] == row["s3/train/failed"] == 0.0
    assert first["training/async/n_prev_carry_over_rollouts"] == 0
    assert second["training/async/n_prev_carry_over_rollouts"] == behind
    # The first step's rollouts are those of the policy that is updated; the second trains some of an earlier one.
    assert first["rollout_corr/rollout_is_max"] == pytest.approx(1.0, abs=0.02)
    assert second["rollout_corr/rollout_is_max"] <= TRAINER.importance_cap
    assert second["rollout_corr/log_ppl_abs_diff"] > first["rollout_corr/log_ppl_abs_diff"]
    assert checkpoint_steps(trained) == [1, 2]


def test_calls_during_an_update_wait_and_no_attempt_fails(trained: Run) -> None:
    answers = Counter(
        line.rpartition('" ')[2][:3] for line in (trained.logs / "gateway.log").open() if "/openai/v1/" in line
    )
    assert answers.keys() == {"200", "429"}, "the gateway was paused while rollouts were played"
    ended = [record for record in records(trained.episodes) if record.state == "succeeded"]
    assert {record.attempts for record in ended} == {1}
    assert not [failure for record in ended for failure in record.failures]
    told = summary_of(trained)
    assert (told.lost_rollouts, told.rows_per_rollout, told.skipped_steps) == (0, 1.0, 0)
    assert len(told.reward_curve) == told.steps == TRAINER.steps


def test_a_killed_run_goes_on_with_the_questions_after_those_in_play(services: Services, tmp_path: Path) -> None:
    run, log = Run(tmp_path / "run"), tmp_path / "launcher.log"
    sizes = ["trainer.steps=3", "trainer.validate_every=3", "data.validation_size=4"]
    line = command("train", "--recipe", RECIPE, "--twin", "--name", "run", f"runs={tmp_path}", *sizes)
    with log.open("wb") as output:
        launcher = subprocess.Popen([*line, *services.overrides], cwd=ROOT, stdout=output, stderr=output)
        until(lambda: lines(run.metrics) == 2, process=launcher, log=log)  # step 1 is logged
        launcher.kill()
        launcher.wait()
    order = run.train.read_text()
    done = subprocess.run(command("train", "--resume", str(run.folder)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-6000:]
    after = int(done.stderr.partition("continues after step ")[2][0])
    assert "questions that were in play are not played again" in done.stderr
    assert run.train.read_text().startswith(order), "the questions in the same order, and more"
    assert [row["step"] for row in read_jsonl(run.metrics)] == [0, 1, 2, 3]
    # What the trainer had taken before the kill is not played again, and what it takes now was not played before.
    ids, batch = [row["id"] for row in read_jsonl(run.train)], TRAINER.questions_per_step
    again = {
        record.task.id
        for record in records(run.episodes)
        if record.is_train and record.task is not None and record.attempt_id.startswith("run-1-")
    }
    assert again <= set(ids[batch * (after + TRAINER.steps_ahead) :])
    told = summary_of(run)
    assert (told.steps, told.lost_rollouts, told.rows_per_rollout, told.skipped_steps) == (3, 0, 1.0, 0)
    assert len(json.loads(run.generations.read_text())) == 2
