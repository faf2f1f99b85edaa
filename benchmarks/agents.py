"""What the throughput benchmark plays, as env-contract classes; `native_agents` plays the same."""

import json
import os
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

PROMPT = tuple(range(65, 91))
CALLS = 4


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


class FourCalls:
    """Four policy calls, each prompt the one before with its answer, then a reward."""

    def run(self) -> None:
        ids = list(PROMPT)
        for _ in range(CALLS):
            body = {"model": "auto", "prompt": ids, "max_tokens": 32, "stop": []}
            answer = _post(os.environ["AGL_OPENAI_BASE_URL"] + "/completions", body)
            ids += answer["choices"][0]["token_ids"]
        Trivial().run()
