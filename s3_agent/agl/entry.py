"""The agents as classes that Agent Lightning 1.0.x's own controllers start: one process, one task, one reward event.

`agentlightning.local.agent_class=s3_agent.agl.entry:S3Agent` gives one to the local controller; in a Kubernetes Job,
`python -m s3_agent.agl.entry S3Agent` is the container's command. Any failure raises an exception in `run()` before the
reward is posted: the process ends with code 1, and the attempt has no reward event.
"""

import asyncio
import os
import re
import sys
import time
from typing import ClassVar
from urllib.parse import unquote

from s3_agent.agl.one_task import POLICY_TIMEOUT, PREFIX, OneTaskSettings, play_one, policy_at, task_from_environment
from s3_agent.clients.connections import async_client
from s3_agent.clients.http import bearer, call_json
from s3_agent.errors import ConfigError, GatewayError, S3AgentError
from s3_agent.guard import printable
from s3_agent.rollout.episode_log import EpisodeLog, EpisodeRecord
from s3_agent.rollout.runner import Outcome
from s3_agent.types import Task

EPISODES_VARIABLE = PREFIX + "EPISODES"


def _variable(name: str) -> str:
    if not (value := os.environ.get(name)):
        raise ConfigError(
            f"{name} is not set", remedy="run this under agl-controller, or set the variables that it sets"
        )
    return value


_WHERE = re.compile(r"/rollout/(?P<rollout>[^/]+)/attempt/(?P<attempt>[^/]+)/mode/(?P<mode>[^/]+)/")


def _keep(path: str, policy_url: str, *, task: Task, outcome: Outcome, started_at: float) -> None:
    """Append the episode's record to a file, because no pool of ours writes it."""
    where = _WHERE.search(policy_url)
    if where is None:
        raise ConfigError(
            f"AGL_OPENAI_BASE_URL ({policy_url}) does not name a rollout", remedy="run this under AGL 1.0.x"
        )
    record = EpisodeRecord(
        rollout_id=unquote(where["rollout"]),
        attempt_id=unquote(where["attempt"]),
        attempts=1,
        is_train=where["mode"] == "train",
        state="succeeded",
        task=task,
        started_at=started_at,
        finished_at=time.time(),
        **outcome.record,
    )
    log = EpisodeLog(path)
    log.write(record.model_dump(mode="json"))
    log.close()


class EnvironmentAgent:
    """An agent that reads its input and all addresses from environment variables."""

    agent: ClassVar[str | None] = None
    """The name of the agent; None: the one that S3_AGENT_AGENT names."""

    async def run(self) -> None:
        """Play the task and post its reward. Raises S3AgentError, and then posts nothing."""
        settings = OneTaskSettings.from_environment(agent=self.agent)
        task = task_from_environment()
        policy_url, event_url = _variable("AGL_OPENAI_BASE_URL"), _variable("AGL_EVENT_URL")
        started_at = time.time()
        async with async_client(timeout=POLICY_TIMEOUT, headers=bearer(os.environ.get("AGL_KEY"))) as gateway:
            outcome = await play_one(task, settings, policy=policy_at(gateway, settings, policy_url))
            event = {"event_type": "reward", "data": {"value": outcome.reward.value, "source": "agent"}}
            await call_json(gateway, "POST", event_url, error=GatewayError, body=event, patience_s=settings.patience_s)
        if path := os.environ.get(EPISODES_VARIABLE):
            _keep(path, policy_url, task=task, outcome=outcome, started_at=started_at)


class S3Agent(EnvironmentAgent):
    """s3: it searches, then selects passages for the generator."""

    agent = "s3"


class SearchR1Agent(EnvironmentAgent):
    """Search-R1: the policy searches and answers."""

    agent = "search_r1"


class SearchR1AglChatAgent(EnvironmentAgent):
    """Search-R1 as Agent Lightning's own example plays it."""

    agent = "search_r1_agl_chat"


def main(arguments: list[str]) -> int:
    """Run the named class; 0 when its reward is posted, 1 when it failed, 2 for an unknown name."""
    known = {kind.__name__: kind for kind in (EnvironmentAgent, *EnvironmentAgent.__subclasses__())}
    if len(arguments) != 1 or arguments[0] not in known:
        sys.stderr.write(f"usage: python -m s3_agent.agl.entry {{{','.join(known)}}}\n")
        return 2
    try:
        asyncio.run(known[arguments[0]]().run())
    except S3AgentError as error:
        sys.stderr.write(printable(f"{error.boundary}: {error}\n"))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
