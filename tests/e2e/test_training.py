"""The main job for real: gateway, vLLM, verl, workers, retriever, generator, each a process of its own."""

import json
import os
import subprocess
import sys

import httpx
import psutil
import pytest
from safetensors.torch import load_file

from s3_agent.data.tasks import read_jsonl
from s3_agent.embedded import NANO_POLICY
from s3_agent.evaluation.summary import Summary, logprob_gap, training_rows
from s3_agent.processes.run_folder import Run
from s3_agent.processes.stack import MARKER
from s3_agent.rollout.episode_log import EpisodeRecord
from tests.e2e.conftest import LARGEST_GAP, QUESTIONS, ROLLOUTS, STEPS, Services

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def _summary(run: Run) -> Summary:
    return Summary.model_validate_json(run.summary.read_text())


def test_every_rollout_ends_and_makes_one_row(trained: Run) -> None:
    summary = _summary(trained)
    assert summary.steps == STEPS
    assert summary.rollouts == STEPS * QUESTIONS * ROLLOUTS + 2 * 24
    assert summary.lost_rollouts == 0
    assert summary.rows_per_rollout == 1.0
    assert (summary.dropped_rows, summary.truncated_rows, summary.skipped_steps) == (0, 0, 0)
    records = [EpisodeRecord.model_validate(row) for row in read_jsonl(trained.episodes)]
    assert len({record.rollout_id for record in records}) == summary.rollouts
    assert all(record.state == "succeeded" for record in records)


def test_validation_is_paired_and_greedy(trained: Run) -> None:
    summary = _summary(trained)
    assert summary.val_n == 24
    assert 0.0 <= summary.p_value <= 1.0
    by_step = {row["step"]: row["data"] for row in read_jsonl(trained.metrics)}
    # What we count from the episodes is what the trainer counted, when no rollout is lost.
    assert by_step[0]["val/reward"] == pytest.approx(summary.val_before)
    assert by_step[STEPS]["val/reward"] == pytest.approx(summary.val_after)


def test_the_gradient_is_not_zero_and_the_policy_changes(trained: Run) -> None:
    assert max(row["actor/grad_norm"] for row in training_rows(read_jsonl(trained.metrics))) > 0
    before, after = (load_file(folder / "model.safetensors") for folder in (NANO_POLICY, trained.policy))
    assert before.keys() == after.keys()
    assert any((before[name].float() - after[name].float()).abs().max() > 1e-4 for name in before)


def test_equal_rewards_in_each_group_give_no_gradient(trained: Run) -> None:
    last = training_rows(read_jsonl(trained.metrics))[-1]
    assert last["training/reward"] == 0.0
    assert last["training/n_zero_adv_groups"] == last["training/n_groups"] == QUESTIONS
    assert last["actor/grad_norm"] == 0.0


def test_the_policy_server_has_the_trainers_weights_after_updates(trained: Run) -> None:
    gap = logprob_gap(read_jsonl(trained.metrics), after_step=1)
    assert gap is not None and gap < LARGEST_GAP


def test_stale_weights_would_be_seen(stale: Run) -> None:
    metrics = read_jsonl(stale.metrics)
    first = logprob_gap(metrics[:2])
    assert first is not None and first < LARGEST_GAP
    gap = logprob_gap(metrics, after_step=1)
    assert gap is not None and gap > 2 * LARGEST_GAP


def test_sockets_are_listed_and_local(trained: Run) -> None:
    rows = json.loads(trained.sockets.read_text())
    assert {"python", "raylet"} <= {row["process"] for row in rows}
    # The stores of torch.distributed, in verl's worker and in vLLM's, bind every address; the README names them.
    # Ray adds to a worker's name what it does at the moment.
    open_to_others = {row["process"].partition(".")[0] for row in rows if not row["loopback"]}
    assert open_to_others <= {"ray::WorkerDict", "VLLM::Worker", "VLLM::EngineCore"}


def test_nothing_is_left_running_and_services_of_others_are(trained: Run, services: Services) -> None:
    for process in psutil.process_iter():
        try:
            assert not process.environ().get(MARKER, "").startswith("run-"), process
        except psutil.Error:
            continue
    assert httpx.get(services.retriever + "/healthz").status_code == 200
    assert httpx.get(services.generator + "/models").status_code == 200


def test_ask_shows_an_episode_of_the_trained_policy(trained: Run, services: Services) -> None:
    question = "What is the capital of the country where the city Graz is located?"
    command = [sys.executable, "-m", "s3_agent.cli", "ask", question, "--json", "--run", str(trained.folder)]
    done = subprocess.run([*command, *services.overrides], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout)
    assert answer["question"] == question
    assert answer["answer"]
    assert answer["episode"]["turns"]
