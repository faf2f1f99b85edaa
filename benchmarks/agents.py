"""The agents of the throughput benchmark as env-contract classes; `native_agents` has the same as native agents."""

import json
import os
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

PROMPT = tuple(range(65, 91))
CALLS = 4


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """It uses http.client: other clients spend 25 ms on certificates, which plain HTTP does not need."""
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
    """Posts only a reward, as an agent for AGL's stock controllers does."""

    def run(self) -> None:
        _post(os.environ["AGL_EVENT_URL"], {"event_type": "reward", "data": {"value": 1.0}})


class FourCalls:
    """Four policy calls, each with the prompt and answer of the one before as its prompt, then a reward."""

    def run(self) -> None:
        ids = list(PROMPT)
        for _ in range(CALLS):
            body = {"model": "auto", "prompt": ids, "max_tokens": 32, "stop": []}
            answer = _post(os.environ["AGL_OPENAI_BASE_URL"] + "/completions", body)
            ids += answer["choices"][0]["token_ids"]
        Trivial().run()
