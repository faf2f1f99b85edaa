"""The agents that the throughput benchmark plays: the same rollout as an env-contract class and as a native agent."""

import json
import os
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """By http.client: other clients spend 25 ms on certificates that plain HTTP has no use for."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.netloc, timeout=60)
    headers = {"Authorization": f"Bearer {os.environ['AGL_KEY']}", "Content-Type": "application/json"}
    connection.request("POST", parts.path, json.dumps(body), headers)
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    if response.status >= 400:
        raise RuntimeError(f"{url} answered {response.status}: {answer}")
    return answer


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
