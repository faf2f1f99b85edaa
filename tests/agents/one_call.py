"""A native agent that makes one policy call, by the client that our own agents use."""

from s3_agent.clients.fakes import ToyTokenizer
from s3_agent.clients.http import bearer
from s3_agent.clients.policy import CompletionsPolicy
from s3_agent.rollout.jobs import Job
from s3_agent.rollout.native import WorkerSettings, http_client


class OneCall:
    def __init__(self, settings: WorkerSettings) -> None:
        self._http = http_client(read_s=None, headers=bearer(settings.gateway_key))

    async def play(self, job: Job) -> float:
        policy = CompletionsPolicy(self._http, job.policy_url, ToyTokenizer())
        await policy.complete(list(range(65, 91)), max_tokens=8, stop=())
        return 1.0

    async def close(self) -> None:
        await self._http.aclose()
