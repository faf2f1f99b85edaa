"""What an OpenAI-compatible server reports about one model: its window, whether vLLM serves it, the size of a prompt.

Policies, generator and judge ask here. None of this is in OpenAI's API, so a server that refuses is treated as one that
does not report it. vLLM's own sampling fields go only to a server that says it is vLLM: a strict OpenAI server refuses
a field that it does not know.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from s3_agent.clients.http import call_json
from s3_agent.errors import BoundaryError

MOST_STOPS = 4
"""How many stop strings a request may hold: the limit of OpenAI and of newer vLLM."""
NEUTRAL = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""vLLM's sampling fields at values that change nothing. A server may take what a request leaves out from the model's
`generation_config.json`.
"""
_ABSENT = (404, 405, 501)


def entry_of(models: Any, model: str) -> dict[str, Any]:
    """What a server's answer to `/models` says about `model`; empty where it does not list it."""
    listed = models.get("data") if isinstance(models, dict) else None
    for served in listed if isinstance(listed, list) else []:
        if isinstance(served, dict) and served.get("id") == model:
            return served
    return {}


def window_of(models: Any, model: str) -> int | None:
    """How many tokens `model` takes, by a server's answer to `/models`; None where it does not say, as vLLM does."""
    window = entry_of(models, model).get("max_model_len")
    return window if isinstance(window, int) and window > 1 else None  # True is an int


def cut_at(text: str, stop: Sequence[str]) -> str:
    """`text` up to and including the stop string that ends first; all of it if it holds none."""
    return text[: min((text.find(mark) + len(mark) for mark in stop if mark in text), default=None)]


class ModelServer:
    """The server at `url` (its OpenAI base) and what it reports about `model`. Each question is asked once.

    All methods raise `error` when the server can not be reached.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        url: str,
        model: str,
        *,
        error: type[BoundaryError],
        patience_s: float | None = None,
    ) -> None:
        self._client = client
        self._url = url.rstrip("/")
        self._model = model
        self._error = error
        self._patience_s = patience_s
        self._entry: dict[str, Any] = {}
        self._asked = self._counts_no_tokens = False
        self._asking = asyncio.Lock()

    async def window(self) -> int | None:
        """The model's window in tokens; None where the server does not report it."""
        return window_of({"data": [await self._served()]}, self._model)

    async def sampling(self) -> dict[str, Any]:
        """The sampling fields beyond OpenAI's that a request should set (`NEUTRAL`); none where it may not."""
        return dict(NEUTRAL) if (await self._served()).get("owned_by") == "vllm" else {}

    async def count(self, asked: Mapping[str, Any]) -> int | None:
        """The tokens of a prompt (`messages` or `prompt`) with its chat template; None if it can not count them."""
        if self._counts_no_tokens:
            return None
        body = {"model": self._model, **asked}
        counted, settled = await self._optional("POST", self._url.removesuffix("/v1") + "/tokenize", body)
        if isinstance(counted, dict) and isinstance(counted.get("count"), int):
            return counted["count"]
        self._counts_no_tokens = settled
        return None

    async def _served(self) -> dict[str, Any]:
        if self._asked:
            return self._entry
        async with self._asking:  # a concurrent caller waits for the answer, and asks itself if none came
            if not self._asked:
                models, self._asked = await self._optional("GET", f"{self._url}/models")
                self._entry = entry_of(models, self._model)
        return self._entry

    async def _optional(self, method: str, url: str, body: Any = None) -> tuple[Any, bool]:
        """An answer that not every server gives, and whether it is final: given, or unknown to that server.

        None where the server refuses.
        """
        try:
            answer = await call_json(
                self._client, method, url, error=self._error, body=body, patience_s=self._patience_s
            )
        except BoundaryError as error:
            if error.status is None:
                raise
            return None, error.status in _ABSENT
        return answer, True
