"""Everything is somebody else's: gateway, retriever, generator, Ray, and the stock controller instead of our pool."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from benchmarks.real_gateway import KEY, real_gateway
from s3_agent.data.tasks import read_jsonl
from s3_agent.embedded import NANO_POLICY
from s3_agent.evaluation.summary import Summary
from s3_agent.rollout.episode_log import EpisodeRecord
from tests.e2e.conftest import QUESTIONS, ROLLOUTS, Services, train
from tests.integration.test_env_contract import stock_controller

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

VALIDATION = 4
_CLUSTER = """
import os
os.environ.update(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0")
import ray, sys
options = dict(num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[1])
ray.init(address="local", _node_ip_address="127.0.0.1", **options)
print(ray.get_runtime_context().gcs_address, flush=True)
for _ in sys.stdin:
    print(ray.get(ray.remote(lambda: "alive").remote()), flush=True)
"""


@contextmanager
def ray_cluster(folder: Path) -> Iterator[tuple[str, psutil.Popen]]:
    cluster = psutil.Popen(
        [sys.executable, "-c", _CLUSTER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield cluster.stdout.readline().strip(), cluster
    finally:
        cluster.stdin.close()
        cluster.wait(60)


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
