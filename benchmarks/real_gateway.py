"""Runs the real gateway in a separate process, with the trainer's side of its API, for benchmarks and tests."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from s3_agent.processes.commands import gateway_command
from s3_agent.processes.ports import reserve_port
from s3_agent.recipe import load_recipe

KEY = "real-gateway"
READY_WITHIN_S = 60.0
ROOT = Path(__file__).parents[1]


class GatewayApi:
    """The trainer's side of the gateway."""

    def __init__(self, url: str, process: subprocess.Popen[bytes]) -> None:
        self.url, self.process = url, process
        self.http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)

    def enqueue(
        self, *inputs: Any, timeout_s: int = 60, agent_class: str | None = None, env_map: dict[str, str] | None = None
    ) -> list[str]:
        config: dict[str, Any] = {"timeout_seconds": timeout_s}
        if agent_class:
            config["local"] = {"agent_class": agent_class, "env_map": env_map or {}}
        rows = [{"input": row, "config": config} for row in inputs]
        return [row["rollout_id"] for row in self.http.post("/api/rollouts", json=rows).raise_for_status().json()]

    def detail(self, rollout_id: str) -> dict[str, Any]:
        return self.http.get(f"/api/rollouts/{rollout_id}").raise_for_status().json()

    def status(self, rollout_id: str) -> dict[str, Any]:
        return self.detail(rollout_id)["rollout"]["status"]

    def states(self, rollout_ids: list[str]) -> set[str]:
        return {self.status(rollout_id)["state"] for rollout_id in rollout_ids}

    def events(self, rollout_id: str) -> list[dict[str, Any]]:
        return self.http.get(f"/api/rollouts/{rollout_id}/events").raise_for_status().json()

    def rewards(self, rollout_id: str) -> list[float]:
        return [event["data"]["value"] for event in self.events(rollout_id) if event["event_type"] == "reward"]

    def ended(self) -> int:
        """The number of rollouts that have ended since the start."""
        answer = self.http.get("/api/rollouts/terminal", params={"limit": 1}).raise_for_status()
        return answer.json()["total_terminal"]

    def delete(self, rollout_ids: list[str]) -> None:
        for rollout_id in rollout_ids:
            self.http.delete(f"/api/rollouts/{rollout_id}").raise_for_status()


@contextmanager
def real_gateway(
    folder: Path, *, model: str = "none", policy_url: str | None = None, stock: bool = False, calls: int | None = None
) -> Iterator[GatewayApi]:
    """Start the gateway with the policy at `policy_url` registered, and stop it after the block.

    `stock` starts Agent Lightning's own; otherwise ours, which passes at most `calls` policy calls at a time.
    """
    port = reserve_port("gateway", 0)
    recipe = load_recipe("cpu", [f"policy.model={model}", *([f"gateway.policy_calls={calls}"] if calls else [])])
    command = gateway_command(recipe, port=port, folder=folder)
    if stock:
        command[command.index("s3_agent.agl.gateway")] = "agentlightning.server"
    log = folder / "gateway.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            cwd=folder,
            env={**os.environ, "AGL_KEY": KEY},
            start_new_session=True,
        )
    api = GatewayApi(f"http://127.0.0.1:{port}", process)
    try:
        deadline = time.monotonic() + READY_WITHIN_S
        while True:
            with suppress(httpx.TransportError):
                if api.http.get("/healthz").is_success:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError(f"the gateway did not start: {log.read_text()[-2000:]}")
            time.sleep(0.05)
        if policy_url:
            api.http.post("/api/models", json=[{"model": model, "endpoint": f"{policy_url}/v1"}]).raise_for_status()
        yield api
    finally:
        process.kill()
        process.wait()
        api.http.close()
