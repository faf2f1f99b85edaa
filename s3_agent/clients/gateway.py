"""Agent Lightning's gateway over plain HTTP: claim, attempts, events (docs/originals.md#f1 to #f8).

queuing -> running is the atomic claim: an illegal transition answers 409, so any number of pools may compete. One
process makes these calls for the whole pool, three and more a rollout, so they use aiohttp: httpx needs several times
its processor time.
"""

import asyncio
import json
from typing import Any, Literal, Self
from urllib.parse import quote

import aiohttp
from pydantic import BaseModel, Field, ValidationError
from yarl import URL

from retrieval_server.proxies import proxy_of
from retrieval_server.retry_after import retry_after_s
from s3_agent.clients.gateway_limit import LIMIT_PATH, GatewayLimit, gateway_limit
from s3_agent.clients.http import bearer, passes, retry_wait_s
from s3_agent.errors import GatewayError

RolloutState = Literal["queuing", "running", "succeeded", "failed"]
CONNECTIONS = 64


class LocalConfig(BaseModel):
    """Which env-contract class plays, and which field of the input each of its variables holds."""

    agent_class: str | None = None
    env_map: dict[str, str] = Field(default_factory=dict)


class RolloutConfig(BaseModel):
    """The fields of a rollout's configuration that a pool reads. A timeout of 0 means no timeout."""

    timeout_seconds: int = 3600
    local: LocalConfig | None = None


class RolloutMetadata(BaseModel):
    """What the trainer adds to a rollout: the seed for its sampling (`s3_agent.agl.seeding`)."""

    seed: int | None = None


class RolloutStatus(BaseModel):
    """The state of a rollout. `created_at` is a time of the gateway's clock, in Unix seconds."""

    state: RolloutState
    last_attempt_id: str | None = None
    created_at: float | None = None


class Rollout(BaseModel):
    """One gateway-managed execution of a task; unknown fields of other AGL versions are ignored."""

    rollout_id: str
    input: Any
    is_train: bool = True
    config: RolloutConfig = Field(default_factory=RolloutConfig)
    metadata: RolloutMetadata = Field(default_factory=RolloutMetadata)
    status: RolloutStatus


def _part(name: str) -> str:
    return quote(name, safe="")


class Gateway:
    """The gateway at `url`. Every call raises GatewayError if it is unreachable for `patience_s` seconds."""

    def __init__(self, url: str, key: str, *, patience_s: float = 60.0) -> None:
        self.url = url.rstrip("/")
        self.patience_s = patience_s
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS, keepalive_timeout=60),
            timeout=aiohttp.ClientTimeout(total=300, sock_connect=10),
            headers={"Content-Type": "application/json", **bearer(key)},
            proxy=proxy_of(self.url),  # aiohttp's `trust_env` would look for it at every request, in a thread
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def _once(self, method: str, path: str, body: Any) -> tuple[int, bytes, str | None]:
        # Encoded here, path and body: aiohttp's own quoting and payloads cost as much as sending.
        data = None if body is None else json.dumps(body).encode()
        async with self._http.request(method, URL(self.url + path, encoded=True), data=data) as response:
            return response.status, await response.read(), response.headers.get("retry-after")

    async def _call(self, method: str, path: str, body: Any = None) -> tuple[bytes, bool]:
        """The answer's body, and whether an earlier try may have been carried out too."""
        loop = asyncio.get_running_loop()
        started, tries = loop.time(), 0
        while True:
            try:
                status, answer, retry_after = await self._once(method, path, body)
                reason = f"status {status}: {answer[:300].decode(errors='replace')}"
                if status < 400:
                    return answer, tries > 0
                if not passes(status):
                    raise GatewayError(
                        f"{method} {self.url}{path} was refused with {reason}",
                        remedy="check the gateway's version and key",
                        status=status,
                        after_retry=tries > 0,
                    )
                asked_wait = retry_after_s(retry_after)
            except (aiohttp.ClientError, TimeoutError) as cause:
                reason, asked_wait = f"{type(cause).__name__} {cause}".strip(), None
            left = self.patience_s - (loop.time() - started)
            if left <= 0:
                raise GatewayError(
                    f"{method} {self.url}{path} failed for {self.patience_s:.0f} s: {reason}",
                    remedy="check that the gateway is running at that address, and its log",
                )
            tries += 1
            await asyncio.sleep(min(retry_wait_s(tries, asked_wait), left))

    async def rollouts(self, state: RolloutState, *, limit: int) -> list[Rollout]:
        """Rollouts in a state, oldest first."""
        answer, _ = await self._call("GET", f"/api/rollouts?state_in={state}&limit={limit}")
        try:
            return [Rollout.model_validate(row) for row in json.loads(answer)]
        except (TypeError, ValueError) as cause:
            raise GatewayError(f"{self.url} lists rollouts in an unknown form: {answer[:300]!r}") from cause

    async def claim(self, rollout_id: str, attempt_id: str) -> bool:
        """Take a queued rollout; False when another pool was first or it is gone."""
        try:
            await self._patch(rollout_id, {"state": "running", "last_attempt_id": attempt_id})
        except GatewayError as error:
            if error.status == 409 and error.after_retry:
                # The first answer may have been lost: ask the gateway who has claimed it.
                current = await self.status(rollout_id)
                return current is not None and current.state == "running" and current.last_attempt_id == attempt_id
            if error.status in (404, 409):
                return False
            raise
        return True

    async def status(self, rollout_id: str) -> RolloutStatus | None:
        """The state of the rollout; None when the gateway no longer has it."""
        try:
            answer, _ = await self._call("GET", f"/api/rollouts/{_part(rollout_id)}")
        except GatewayError as error:
            if error.status == 404:
                return None
            raise
        try:
            return Rollout.model_validate(json.loads(answer)["rollout"]).status
        except (TypeError, KeyError, ValidationError) as cause:
            raise GatewayError(f"{self.url} shows a rollout in an unknown form: {answer[:300]!r}") from cause

    async def new_attempt(self, rollout_id: str, attempt_id: str) -> None:
        """Move a running rollout to a fresh attempt; events of earlier attempts no longer count."""
        await self._patch(rollout_id, {"last_attempt_id": attempt_id})

    async def post_reward(self, rollout_id: str, attempt_id: str, reward: float) -> None:
        """Post the reward event of `attempt_id`. Repeating it does no harm: the trainer reads the last one."""
        event = {"event_type": "reward", "data": {"value": reward, "source": "agent"}}
        await self._call("POST", self.event_path(rollout_id, attempt_id), event)

    async def events(self, rollout_id: str, *, event_type: str | None = None) -> list[dict[str, Any]]:
        """The events of the rollout's attempt in their order, each with `event_type` and a `data` object."""
        asked = f"&event_type={event_type}" if event_type else ""
        path = f"/api/rollouts/{_part(rollout_id)}/events?include_routed_experts=false{asked}"
        answer, _ = await self._call("GET", path)
        try:
            events = json.loads(answer)
            if not all(isinstance(event["event_type"], str) and isinstance(event["data"], dict) for event in events):
                raise TypeError("an event has no type or no data")
        except (TypeError, KeyError, ValueError) as cause:
            raise GatewayError(f"{self.url} shows events in an unknown form: {answer[:300]!r}") from cause
        return events

    async def succeed(self, rollout_id: str, attempt_id: str) -> None:
        """End the rollout on the attempt that earned its reward."""
        await self._end(rollout_id, {"state": "succeeded", "last_attempt_id": attempt_id})

    async def fail(self, rollout_id: str, empty_attempt_id: str, message: str) -> None:
        """End a rollout on an attempt without events: it is skipped, not trained as a 0 (docs/originals.md#f1)."""
        status = {"state": "failed", "last_attempt_id": empty_attempt_id, "error_message": message}
        await self._end(rollout_id, status)

    async def _end(self, rollout_id: str, status: dict[str, str]) -> None:
        try:
            await self._patch(rollout_id, status)
        except GatewayError as error:
            if error.status != 409 or not error.after_retry:
                raise
            # The first answer may have been lost: ask the gateway how the rollout ended.
            current = await self.status(rollout_id)
            wanted = status["state"], status["last_attempt_id"]
            if current is None or (current.state, current.last_attempt_id) != wanted:
                raise

    async def limit(self, *, stated: int | None) -> GatewayLimit:
        """How many policy calls it passes at a time; `stated` is the recipe's value."""
        return gateway_limit(await self._optional(LIMIT_PATH), stated=stated)

    async def policy_calls(self) -> int | None:
        """How many policy calls it holds, including those that wait for a connection; None if not reported."""
        try:
            return int(json.loads(await self._optional("/proxy/state") or "")["inflight"])
        except (TypeError, KeyError, ValueError):
            return None

    async def _optional(self, path: str) -> bytes | None:
        """The content of a page; None for a gateway that has no such page."""
        try:
            answer, _ = await self._call("GET", path)
        except GatewayError as error:
            if error.status is None:
                raise
            return None
        return answer

    async def terminal_count(self) -> int:
        """How many rollouts have ended since the gateway was started: it only grows."""
        answer, _ = await self._call("GET", "/api/rollouts/terminal?after=0&limit=1")
        return int(json.loads(answer)["total_terminal"])

    async def _patch(self, rollout_id: str, status: dict[str, str]) -> None:
        await self._call("PATCH", f"/api/rollouts/{_part(rollout_id)}", {"status": status})

    @staticmethod
    def event_path(rollout_id: str, attempt_id: str) -> str:
        """Where events of an attempt are posted."""
        return f"/api/rollouts/{_part(rollout_id)}/attempt/{_part(attempt_id)}/events"

    def policy_url(self, rollout: Rollout, attempt_id: str) -> str:
        """The OpenAI base address whose calls are recorded under this attempt."""
        mode = "train" if rollout.is_train else "val"
        path = f"rollout/{_part(rollout.rollout_id)}/attempt/{_part(attempt_id)}/mode/{mode}"
        return f"{self.url}/proxy/{path}/openai/v1"
