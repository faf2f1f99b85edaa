"""Everything is somebody else's: gateway, retriever, generator, Ray, and the stock controller instead of our pool."""

from pathlib import Path

import httpx
import pytest

from benchmarks.real_gateway import KEY, real_gateway
from s3_agent.data.tasks import read_jsonl
from s3_agent.embedded import NANO_POLICY
from s3_agent.evaluation.summary import Summary
from s3_agent.rollout.episode_log import EpisodeRecord
from tests.e2e.conftest import QUESTIONS, ROLLOUTS, Services, train
from tests.integration.test_env_contract import stock_controller
from tests.ray_cluster import ray_cluster

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

VALIDATION = 4


def test_a_run_uses_what_others_started_and_leaves_it_as_it_was(
    services: Services,
    tasks: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    short = tmp_path_factory.mktemp("r")  # the paths of Ray's sockets must be short
    with (
        real_gateway(tmp_path, model=str(NANO_POLICY)) as gateway,
        stock_controller(gateway, tmp_path),
        ray_cluster(short) as (address, cluster),
    ):
        overrides = [f"gateway.url={gateway.url}", f"gateway.key={KEY}", f"ray.address={address}"]
        sizes = ["trainer.steps=1", f"data.validation_size={VALIDATION}", "workers.external=true"]
        run = train(services, tasks, tmp_path, *overrides, *sizes)
        assert gateway.process.poll() is None
        assert gateway.http.get("/healthz").is_success
        cluster.stdin.write("?\n")
        cluster.stdin.flush()
        assert cluster.stdout.readline() == "alive\n"
    assert httpx.get(services.retriever + "/healthz").is_success
    assert httpx.get(services.generator + "/models").is_success
    assert not (run.logs / "workers.log").exists(), "no pool of ours was started"
    assert {path.name for path in run.logs.glob("*.log")} <= {"trainer.log", "export.log"}
    summary = Summary.model_validate_json(run.summary.read_text())
    assert (summary.steps, summary.lost_rollouts, summary.rows_per_rollout) == (1, 0, 1.0)
    assert summary.val_n == VALIDATION
    records = [EpisodeRecord.model_validate(row) for row in read_jsonl(run.episodes)]
    assert len(records) == QUESTIONS * ROLLOUTS + 2 * VALIDATION == len({record.rollout_id for record in records})
    assert {record.episode.agent for record in records if record.episode is not None} == {"s3"}
