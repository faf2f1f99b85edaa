"""The agents of the throughput benchmark as native agents; `agents` has the same as env-contract classes."""

from benchmarks.agents import CALLS, PROMPT
from s3_agent.clients.http import bearer
from s3_agent.clients.policy import CompletionsPolicy
from s3_agent.rollout.jobs import Job
from s3_agent.rollout.worker.native import WorkerSettings, http_client
from s3_agent.testing.fakes import ToyTokenizer


class FourCallsNative:
    """The same agent with the client that our agents use."""

    calls = CALLS

    def __init__(self, settings: WorkerSettings) -> None:
        self._http = http_client(read_s=None, headers=bearer(settings.gateway_key))

    async def play(self, job: Job) -> float:
        policy, ids = CompletionsPolicy(self._http, job.policy_url, ToyTokenizer()), list(PROMPT)
        for _ in range(self.calls):
            ids += (await policy.complete(ids, max_tokens=32, stop=())).token_ids
        return 1.0

    async def close(self) -> None:
        await self._http.aclose()


class OneCallNative(FourCallsNative):
    """One policy call."""

    calls = 1


class TrivialNative:
    """The same agent for our pool, whose supervisor posts the reward."""

    def __init__(self, _: object) -> None:
        pass

    async def play(self, _: object) -> float:
        return 1.0

    async def close(self) -> None:
        pass
