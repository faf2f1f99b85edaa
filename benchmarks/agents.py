"""The agents that the throughput benchmark plays: the same rollout as an env-contract class and as a native agent."""

import json
import os
import urllib.request
from typing import Any


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {os.environ['AGL_KEY']}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, data=json.dumps(body).encode(), headers=headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


class Trivial:
    """Posts a reward and nothing else, as an agent for AGL's stock controllers does."""

    def run(self) -> None:
        _post(os.environ["AGL_EVENT_URL"], {"event_type": "reward", "data": {"value": 1.0}})


class TrivialNative:
    """The same for our pool, whose supervisor posts the reward."""

    def __init__(self, _: object) -> None:
        pass

    async def play(self, _: object) -> float:
        return 1.0

    async def close(self) -> None:
        pass
