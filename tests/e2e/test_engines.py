"""A step of the real stack with words and vectors in a real Postgres, which is restarted while rollouts search.

The encoder has random weights: nothing is downloaded, and what it finds is not asked.
"""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.real_postgres import running_postgres
from benchmarks.untrained_encoder import save_untrained_bert
from s3_agent.data.tasks import read_jsonl
from s3_agent.embedded import CORPUS
from s3_agent.evaluation.summary import Summary
from s3_agent.processes.run_folder import Run
from s3_agent.rollout.episode_log import EpisodeRecord
from tests.e2e.conftest import QUESTIONS, ROLLOUTS, ROOT, Services, rag_cache_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

VALIDATION = 4
AWAY_S = 3.0


@pytest.mark.slow
def test_no_rollout_is_lost_with_the_index_in_postgres(services: Services, tasks: Path, tmp_path: Path) -> None:
    with running_postgres() as postgres:
        model = tmp_path / "encoder"
        words = {word for passage in read_jsonl(CORPUS) for word in re.findall("[a-z]+", passage["contents"].lower())}
        save_untrained_bert(model, sorted(words), dimension=32, layers=1, heads=2, spread=0.5)
        index = {"kind": "pgvector", "url": postgres.url, "search": "hybrid", "patience_s": 1}
        (tmp_path / "pgvector.yaml").write_text(json.dumps({**index, "encoder": {"model": str(model)}}))
        folder = tmp_path / "prepared/index/corpus"
        build = ["index", "build", "--corpus", str(CORPUS), "--index", str(folder)]
        backend = ["--backend", str(tmp_path / "pgvector.yaml")]
        subprocess.run([sys.executable, "-m", "retrieval_server", *build, *backend], check=True, timeout=300)
        settings = [
            f"generator.url={services.generator}",
            *("retriever.port=0", "gateway.port=0", f"prepared={tmp_path / 'prepared'}", f"runs={tmp_path}"),
            *(f"data.train={tasks}", f"data.rag_cache={rag_cache_of(tasks)}", f"data.validation_size={VALIDATION}"),
            *("data.allow_mismatch=true", "trainer.steps=1"),
            *(f"retriever.index.{name}={value}" for name, value in index.items()),
            f"retriever.index.encoder.model={model}",
            *(f"trainer.questions_per_step={QUESTIONS}", f"trainer.rollouts_per_question={ROLLOUTS}"),
        ]
        command = [sys.executable, "-m", "s3_agent.cli", "train", "--name", "run", *settings]
        run = Run(tmp_path / "run")
        with (tmp_path / "output").open("w") as output:
            training = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
            try:
                while training.poll() is None and not (run.episodes.exists() and read_jsonl(run.episodes)):
                    time.sleep(0.2)
                postgres.stop()
                time.sleep(AWAY_S)
                postgres.start()
                assert training.wait(timeout=800) == 0, (tmp_path / "output").read_text()[-6000:]
            finally:
                training.terminate()
                training.wait()
    records = [EpisodeRecord.model_validate(row) for row in read_jsonl(run.episodes)]
    assert len(records) == QUESTIONS * ROLLOUTS + 2 * VALIDATION
    assert all(record.state == "succeeded" and record.episode is not None for record in records)
    found = [turn.passages for record in records if record.episode for turn in record.episode.turns if turn.passages]
    assert found, "no rollout searched"
    summary = Summary.model_validate_json(run.summary.read_text())
    assert (summary.lost_rollouts, summary.rows_per_rollout) == (0, 1.0)
