"""Agent Lightning's gateway over plain HTTP: claim, attempts, events (design §4; AGL 1.0.x `schemas.py`).

queuing -> running is the atomic claim: an illegal transition answers 409, so any number of pools may compete.
"""

from typing import Any, Literal
from urllib.parse import quote

import httpx
from pydantic import BaseModel, Field, ValidationError

from s3_agent.clients.http import call_json
from s3_agent.errors import GatewayError

RolloutState = Literal["queuing", "running", "succeeded", "failed"]


class RolloutConfig(BaseModel):
    """The part of a rollout's configuration that a pool reads."""

    timeout_seconds: int = 3600


class RolloutStatus(BaseModel):
    """Where a rollout stands."""

    state: RolloutState
    last_attempt_id: str | None = None


class Rollout(BaseModel):
    """One gateway-managed execution of a task; unknown fields of other AGL versions are ignored."""

    rollout_id: str
    input: Any
    is_train: bool = True
    config: RolloutConfig = Field(default_factory=RolloutConfig)
    status: RolloutStatus


class Gateway:
    """The gateway at `url`. Every call raises GatewayError when it stays unreachable."""

    def __init__(self, client: httpx.AsyncClient, url: str, *, patience_s: float = 60.0) -> None:
        self.url = url.rstrip("/")
        self._client = client
        self._patience_s = patience_s

    async def _call(self, method: str, path: str, body: Any = None) -> Any:
        return await call_json(
            self._client, method, self.url + path, error=GatewayError, body=body, patience_s=self._patience_s
        )

    async def rollouts(self, state: RolloutState, *, limit: int) -> list[Rollout]:
        """Rollouts in a state, oldest first."""
        rows = await self._call("GET", f"/api/rollouts?state_in={state}&limit={limit}")
        try:
            return [Rollout.model_validate(row) for row in rows]
        except (TypeError, ValidationError) as cause:
            raise GatewayError(f"{self.url} lists rollouts in an unknown form: {str(rows)[:300]}") from cause

    async def claim(self, rollout: Rollout, attempt_id: str) -> bool:
        """Take a queued rollout; False when another pool was first or it is gone."""
        status = {"state": "running", "last_attempt_id": attempt_id}
        try:
            await self._patch(rollout.rollout_id, status)
        except GatewayError as error:
            if error.status not in (404, 409):
                raise
            # A retried claim answers 409 also when its own first answer was lost: the gateway says whose it is.
            current = await self.status(rollout.rollout_id)
            return current is not None and current.state == "running" and current.last_attempt_id == attempt_id
        return True

    async def status(self, rollout_id: str) -> RolloutStatus | None:
        """Where the rollout stands, None when the gateway no longer has it."""
        try:
            row = await self._call("GET", f"/api/rollouts/{quote(rollout_id, safe='')}")
        except GatewayError as error:
            if error.status == 404:
                return None
            raise
        return Rollout.model_validate(row["rollout"]).status

    async def new_attempt(self, rollout_id: str, attempt_id: str) -> None:
        """Move a running rollout to a fresh attempt; events of earlier attempts no longer count."""
        await self._patch(rollout_id, {"last_attempt_id": attempt_id})

    async def succeed(self, rollout_id: str, attempt_id: str, reward: float) -> None:
        """Post the reward event of `attempt_id`, then end the rollout on that attempt."""
        path = f"/api/rollouts/{quote(rollout_id, safe='')}/attempt/{quote(attempt_id, safe='')}/events"
        await self._call("POST", path, {"event_type": "reward", "data": {"value": reward, "source": "agent"}})
        await self._patch(rollout_id, {"state": "succeeded", "last_attempt_id": attempt_id})

    async def fail(self, rollout_id: str, empty_attempt_id: str, message: str) -> None:
        """End a rollout onto an attempt without events, so that it is skipped and not taught as a zero (design §4)."""
        status = {"state": "failed", "last_attempt_id": empty_attempt_id, "error_message": message}
        await self._patch(rollout_id, status)

    async def _patch(self, rollout_id: str, status: dict[str, str]) -> None:
        await self._call("PATCH", f"/api/rollouts/{quote(rollout_id, safe='')}", {"status": status})

    def policy_url(self, rollout: Rollout, attempt_id: str) -> str:
        """The OpenAI base address whose calls are recorded under this attempt."""
        mode = "train" if rollout.is_train else "val"
        rollout_id, attempt = quote(rollout.rollout_id, safe=""), quote(attempt_id, safe="")
        return f"{self.url}/proxy/rollout/{rollout_id}/attempt/{attempt}/mode/{mode}/openai/v1"
