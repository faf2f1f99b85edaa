"""The 0.x adapters against the real packages, each in an environment of its own (kept in `prepared/legacy`)."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request

from s3_agent.clients.tokenizer import load_tokenizer
from s3_agent.embedded import NANO_POLICY
from s3_agent.processes.ports import reserve_port
from s3_agent.rollout.worker.native import WorkerSettings
from s3_agent.testing.fakes import FakePolicy, FakeRetriever
from s3_agent.testing.servers import policy_app, retriever_app, serve
from tests.pool_harness import ROOT, SPAIN, searcher, task

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# What our package needs of its own, without its torch: the adapters run from the checkout.
OURS = ("httpx", "pydantic>=2.10", "tenacity", "transformers", "structlog", "pyyaml", "setuptools<81")


def interpreter(version: str) -> Path:
    """Python of an environment with that version, made when it is not there yet."""
    folder = ROOT / "prepared/legacy" / version
    python, ready = folder / "bin/python", folder / "ready"
    if not ready.exists():
        subprocess.run(["uv", "venv", "-q", "--clear", "-p", sys.executable, folder], check=True)
        packages = [f"agentlightning=={version}", *OURS]
        subprocess.run(["uv", "pip", "install", "-q", "-p", python, *packages], check=True)
        ready.touch()
    return python


def play(version: str, script: str, policy: FakePolicy, cases: list[dict[str, Any]]) -> tuple[list[Any], list[str]]:
    """What the script found, and the paths at which the policy was asked."""
    paths: list[str] = []
    app = FastAPI()

    @app.middleware("http")
    async def unrouted(request: Request, call_next: Any) -> Any:
        # As the proxy of 0.3 does: the rollout is in the path.
        paths.append(request.scope["path"])
        request.scope["path"] = "/v1/completions"
        return await call_next(request)

    app.mount("/", policy_app(policy))
    with serve(app) as url:
        command = [interpreter(version), ROOT / "tests/integration" / script]
        arguments = [f"{url}/v1", str(reserve_port("legacy", 0)), json.dumps(cases)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OTEL_SDK_DISABLED": "false"}
        ran = subprocess.run(
            [*map(str, command), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert ran.returncode == 0, ran.stderr[-4000:]
    [line] = [line for line in ran.stdout.splitlines() if line.startswith("FOUND")]
    return json.loads(line.removeprefix("FOUND")), paths


@pytest.fixture
def policy() -> FakePolicy:
    return FakePolicy(searcher, load_tokenizer(str(NANO_POLICY)))


@pytest.fixture
def cases(worker: WorkerSettings) -> list[dict[str, Any]]:
    """A rewarded task, one with a reward of zero and one whose retriever is gone."""
    with serve(retriever_app(FakeRetriever(default=[SPAIN]))) as dead_url:
        pass
    settings = {
        "retriever_url": worker.retriever_url,
        "generator_url": worker.generator_url,
        "policy_tokenizer": worker.policy_tokenizer,
        "agent": worker.agent.model_dump(mode="json"),
        "generator": {"model": "fake", "patience_s": 0.2},
        "patience_s": 0.2,
    }
    return [
        {"row": task(1), "settings": settings},
        {"row": task(2) | {"golden_answers": ["Euro"]}, "settings": settings},
        {"row": task(3), "settings": settings | {"retriever_url": dead_url}},
    ]


def test_0_1_gets_reward_and_exact_token_ids(policy: FakePolicy, cases: list[dict[str, Any]]) -> None:
    found, _ = play("0.1.2", "legacy_0_1.py", policy, cases)
    assert [each["reward"] for each in found] == [1.0, 0.0, None]
    sent = [[list(prompt), list(response)] for prompt, response in zip(policy.prompts, policy.responses, strict=True)]
    assert found[0]["ids"] == sent[:2] and found[1]["ids"] == sent[2:4]
    assert found[2]["ids"] == []
    (first, said), (second, _) = found[0]["ids"]
    assert second[: len(first) + len(said)] == first + said


def test_0_3_gets_the_reward_and_a_failed_attempt_has_none(policy: FakePolicy, cases: list[dict[str, Any]]) -> None:
    found, paths = play("0.3.0", "legacy_0_3.py", policy, cases)
    assert [(each["reward"], each["status"]) for each in found] == [
        (1.0, "succeeded"),
        (0.0, "succeeded"),
        (None, "failed"),
    ]
    assert all("/rollout/" in path and "/attempt/" in path for path in paths)
