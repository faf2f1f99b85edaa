"""Our agent under AGL's own controllers: the stock local one, and a rendered Kubernetes Job whose command is run."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import agentlightning
import kubernetes_validate
import pytest
from agentlightning.controller.k8s_reconciler import build_job_spec
from agentlightning.schemas import Rollout
from omegaconf import DictConfig, OmegaConf

from benchmarks.real_gateway import KEY, GatewayApi
from s3_agent.embedded import NANO_POLICY
from s3_agent.rollout.worker.native import WorkerSettings
from s3_agent.testing.fakes import FakeGenerator, FakeRetriever
from s3_agent.testing.servers import generator_app, retriever_app, serve
from tests.installed_wheel import build_wheel, find_uv
from tests.integration.test_env_contract import stock_controller
from tests.pool_harness import ROOT, SPAIN, reader, task, until

TEMPLATE = ROOT / "examples/s3/k8s/job.yaml.j2"
DOCKERFILE = ROOT / "examples/s3/k8s/Dockerfile"
AGENT = "s3_agent.agl.entry:S3Agent"


@pytest.fixture
def variables(worker: WorkerSettings) -> dict[str, str]:
    """What a deployment sets for the agent."""
    return {
        "S3_AGENT_RETRIEVER_URL": worker.retriever_url,
        "S3_AGENT_GENERATOR_URL": worker.generator_url or "",
        "S3_AGENT_POLICY_TOKENIZER": worker.policy_tokenizer,
        "S3_AGENT_AGENT": worker.agent.model_dump_json(),
        "S3_AGENT_GENERATOR": "{model: fake}",
        "S3_AGENT_PATIENCE_S": "0.2",
    }


@pytest.fixture
def dead_url() -> Iterator[str]:
    """An address at which nothing listens any more."""
    with serve(retriever_app(FakeRetriever(default=[SPAIN]))) as url:
        pass
    yield url


def ended(gateway: GatewayApi, rollout_ids: list[str]) -> bool:
    return gateway.states(rollout_ids) <= {"succeeded", "failed"}


def test_the_stock_controller_runs_it_and_a_failure_posts_no_reward(
    gateway: GatewayApi, variables: dict[str, str], dead_url: str, tmp_path: Path
) -> None:
    def enqueue(row: dict[str, Any], **changes: str) -> str:
        env_map = {"S3_AGENT_TASK": "input", **variables, **changes}
        return gateway.enqueue(row, agent_class=AGENT, env_map=env_map)[0]

    with serve(generator_app(FakeGenerator(reader, failures=1_000))) as broken_generator:
        good = enqueue(task(1))
        wrong = enqueue(task(2) | {"golden_answers": ["Euro"]})
        failing = [
            enqueue(task(3), S3_AGENT_RETRIEVER_URL=dead_url),
            enqueue(task(4), S3_AGENT_GENERATOR_URL=f"{broken_generator}/v1"),
            enqueue({"id": "no question"}),
            enqueue(task(5), S3_AGENT_AGENT="{promt: typo}"),
        ]
        with stock_controller(gateway, tmp_path):
            until(lambda: ended(gateway, [good, wrong, *failing]), within_s=80)
    assert gateway.states([good, wrong]) == {"succeeded"}
    assert (gateway.rewards(good), gateway.rewards(wrong)) == ([1.0], [0.0])
    assert [event["event_type"] for event in gateway.events(good)] == ["model_request"] * 2 + ["reward"]
    assert gateway.states(failing) == {"failed"}
    assert [gateway.rewards(rollout_id) for rollout_id in failing] == [[], [], [], []]


def render(gateway: GatewayApi, row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The Job that AGL's controller would create for a rollout of the real gateway."""
    body = [{"input": row, "config": {"timeout_seconds": 60, "k8s": {"job_template": TEMPLATE.read_text()}}}]
    [created] = gateway.http.post("/api/rollouts", json=body).raise_for_status().json()
    rollout = Rollout.model_validate(gateway.detail(created["rollout_id"])["rollout"])
    # The controller's own defaults, as Hydra would hand them over.
    config = OmegaConf.load(Path(agentlightning.__file__).parent / "config/controller.yaml")
    assert isinstance(config, DictConfig)
    config.agl_server.url, config.agl_server.key = gateway.url, KEY
    return rollout.rollout_id, build_job_spec(rollout, config)


def container(job: dict[str, Any]) -> dict[str, Any]:
    [found] = job["spec"]["template"]["spec"]["containers"]
    return found


@dataclass(frozen=True)
class Image:
    """The environment that the Dockerfile makes, and the tokenizer's files as it copies them."""

    environment: Path
    tokenizer: Path

    def run(self, job: dict[str, Any], folder: Path, **changes: str) -> subprocess.CompletedProcess[str]:
        """The container's command with its environment and nothing else, as a container runs it."""
        spec = container(job)
        environment = {item["name"]: item["value"] for item in spec["env"]} | {"HOME": str(folder), **changes}
        environment |= {"PATH": str(self.environment / "bin"), "S3_AGENT_POLICY_TOKENIZER": str(self.tokenizer)}
        return subprocess.run(
            spec["command"], env=environment, cwd=folder, capture_output=True, text=True, timeout=60, check=False
        )


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """What the Dockerfile installs, with the wheel of this clone, and copies of the nano policy."""
    dockerfile, folder = DOCKERFILE.read_text(encoding="utf-8"), tmp_path_factory.mktemp("image")
    [installed] = re.findall(r"^RUN pip install --no-cache-dir (.*) && rm -r /wheel$", dockerfile, re.MULTILINE)
    [copied] = re.findall(r"^COPY --from=tokenizer (.*) /policy-tokenizer/$", dockerfile, re.MULTILINE)
    wheel = build_wheel(folder)
    wanted = shlex.split(installed.replace("$(echo /wheel/*.whl)", str(wheel)))
    python = folder / "environment" / "bin" / "python"
    for command in (
        ["venv", "--quiet", "--python", sys.executable, str(folder / "environment")],
        ["pip", "install", "--quiet", "--python", str(python), *wanted],
    ):
        done = subprocess.run([find_uv(), *command], capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
    (folder / "policy-tokenizer").mkdir()
    for path in (path for pattern in copied.split() for path in NANO_POLICY.glob(pattern)):
        shutil.copy(path, folder / "policy-tokenizer")
    return Image(folder / "environment", folder / "policy-tokenizer")


NASTY = 'Is it "Krone"\n# {{ 7 * 7 }} ${HOME} \'?: - \\ \u2028 クローネ'


def test_the_job_is_valid_kubernetes_and_a_question_can_not_change_it(gateway: GatewayApi) -> None:
    rollout_id, job = render(gateway, task(1) | {"question": NASTY})
    kubernetes_validate.validate(job, "1.32", strict=True)
    assert job["metadata"]["labels"]["agentlightning/rollout-id"] == rollout_id
    environment = {item["name"]: item["value"] for item in container(job)["env"]}
    assert json.loads(environment["S3_AGENT_TASK"]) == task(1) | {"question": NASTY}
    assert {"AGL_OPENAI_BASE_URL", "AGL_EVENT_URL", "AGL_KEY"} <= environment.keys()
    job["spec"]["template"]["spec"]["containers"][0]["comand"] = ["python"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, "1.32", strict=True)


def test_the_containers_command_earns_its_reward_in_the_environment_of_the_image(
    gateway: GatewayApi, variables: dict[str, str], dead_url: str, image: Image, tmp_path: Path
) -> None:
    assert not [*image.environment.glob("lib/*/site-packages/torch")], "the agent alone needs no torch"

    def play(row: dict[str, Any], **changes: str) -> tuple[str, subprocess.CompletedProcess[str]]:
        rollout_id, job = render(gateway, row)
        attempt_id = job["metadata"]["labels"]["agentlightning/attempt-id"]

        def patch(**status: str) -> None:
            gateway.http.patch(f"/api/rollouts/{rollout_id}", json={"status": status}).raise_for_status()

        # What the controller does when it sees the Job, and when the Job has ended.
        patch(state="running", last_attempt_id=attempt_id)
        ran = image.run(job, tmp_path, **{**variables, **changes})
        patch(state="failed" if ran.returncode else "succeeded", last_attempt_id=attempt_id)
        return rollout_id, ran

    good, ran = play(task(1))
    assert ran.returncode == 0, ran.stderr
    assert gateway.rewards(good) == [1.0]
    lost, ran = play(task(2), S3_AGENT_RETRIEVER_URL=dead_url)
    assert ran.returncode == 1 and "retriever:" in ran.stderr and "Traceback" not in ran.stderr
    assert gateway.rewards(lost) == []
