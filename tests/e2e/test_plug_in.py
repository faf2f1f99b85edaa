"""The example plug-in trained by name: its agent, its reward and its index in a step of the real stack."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from s3_agent.data.tasks import read_jsonl
from s3_agent.processes.run_folder import Run
from s3_agent.rollout.episode_log import EpisodeRecord
from tests.e2e.conftest import QUESTIONS, ROLLOUTS, ROOT, Services, rag_cache_of
from tests.installed_wheel import install_beside

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

VALIDATION = 4


@pytest.mark.slow
def test_a_step_is_trained_with_an_agent_a_reward_and_an_index_of_a_package(
    services: Services, tasks: Path, tmp_path: Path
) -> None:
    site = install_beside(ROOT / "examples/plug_in", tmp_path / "plug_in")
    settings = [
        f"generator.url={services.generator}",
        *("retriever.port=0", "gateway.port=0", f"prepared={tmp_path / 'prepared'}", f"runs={tmp_path}"),
        *(f"data.train={tasks}", f"data.rag_cache={rag_cache_of(tasks)}", f"data.validation_size={VALIDATION}"),
        *("data.allow_mismatch=true", "trainer.steps=1", "agents.look_up.reward=brief", "retriever.index.kind=words"),
        *(f"trainer.questions_per_step={QUESTIONS}", f"trainer.rollouts_per_question={ROLLOUTS}"),
    ]
    command = [sys.executable, "-m", "s3_agent.cli", "train", "--name", "run", "--agent", "look_up", *settings]
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-6000:]
    run = Run(tmp_path / "run")
    records = [EpisodeRecord.model_validate(row) for row in read_jsonl(run.episodes)]
    assert len(records) == QUESTIONS * ROLLOUTS + 2 * VALIDATION
    for record in records:
        assert record.state == "succeeded" and record.episode is not None and record.episode.agent == "look_up"
        assert record.episode.prompt.startswith("Write <look_up> what to search for </look_up>")
        written = sum(turn.response_tokens for turn in record.episode.turns)
        assert record.accuracy is not None and record.reward == pytest.approx(record.accuracy - 0.001 * written)
    assert len({record.reward for record in records if record.is_train}) > 1
    manifest = json.loads((tmp_path / "prepared/index/corpus/manifest.json").read_text())
    assert manifest["backend"] == "words"
    summary = json.loads(run.summary.read_text())
    assert summary["rows_per_rollout"] == 1, "a rollout is one row of training"
