"""A policy behind `/chat/completions`, for endpoints that take no token ids (hosted models, in evaluation).

Observations go back as user messages and token counts are the server's or estimates, so nothing that is trained comes
from here; the agents are the same.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx

from s3_agent.clients.chat_model import window_of
from s3_agent.clients.http import call_json
from s3_agent.clients.policy import Reply, Role, seed_of
from s3_agent.clients.replies import content_of, was_cut
from s3_agent.clients.tokenizer import BYTES_PER_TOKEN
from s3_agent.errors import PolicyError
from s3_agent.guard import without_control


def close_stop(before: str, text: str, stop: Sequence[str]) -> str:
    """`text` up to the first stop string; one that the server took away is put back where its tag is still open.

    `before` is what the policy read last: an observation may have opened the tag (docs/originals.md#a2).
    """
    ends = [text.find(mark) + len(mark) for mark in stop if mark in text]
    if ends or not stop:
        return text[: min(ends, default=None)]
    opened = [(f"{before}{text}".rfind(mark.replace("</", "<")), mark) for mark in stop]
    position, mark = max(opened)
    return text + mark if position > f"{before}{text}".rfind(mark) else text


class _Counted:
    """A conversation without a tokenizer: what it holds is what the server counted, or an estimate."""

    def __init__(self, policy: "ChatPolicy", text: str) -> None:
        self._policy = policy
        self._used = self.count(text)

    @property
    def used(self) -> int:
        return self._used

    def count(self, text: str) -> int:
        return -(-len(text.encode(errors="replace")) // BYTES_PER_TOKEN)

    def _reply(self, text: str, usage: Mapping[str, int]) -> Reply:
        tokens = usage.get("completion_tokens") or self.count(text)
        self._used = usage.get("total_tokens") or self._used + tokens
        return Reply(text=text, tokens=tokens)


class ChatConversation(_Counted):
    """Messages that alternate between user and assistant."""

    def __init__(self, policy: "ChatPolicy", message: str) -> None:
        super().__init__(policy, message)
        self._messages = [{"role": "user", "content": message}]

    async def generate(self, *, max_tokens: int, stop: Sequence[str]) -> Reply:
        choice, usage = await self._policy.chat(self._messages, max_tokens=max_tokens, stop=stop)
        text = choice["message"]["content"] or ""
        # vLLM says which stop string it met, and None when the policy ended by itself.
        if choice.get("finish_reason") != "length" and choice.get("stop_reason", stop) is not None:
            text = close_stop(self._messages[-1]["content"], text, stop)
        self._messages.append({"role": "assistant", "content": without_control(text)})
        return self._reply(text, usage)

    def observe(self, text: str, *, role: Role = "assistant") -> str:
        self._messages.append({"role": "user", "content": text.strip("\n")})
        self._used += self.count(text)
        return text


class TextConversation(_Counted):
    """One raw text that the server continues, without a chat template (`/completions`)."""

    def __init__(self, policy: "ChatPolicy", text: str) -> None:
        super().__init__(policy, text)
        self._text = text

    async def generate(self, *, max_tokens: int, stop: Sequence[str]) -> Reply:
        choice, usage = await self._policy.complete(self._text, max_tokens=max_tokens, stop=stop)
        self._text += choice["text"]
        return self._reply(choice["text"], usage)

    def observe(self, text: str, *, role: Role = "assistant") -> str:
        self._text += text
        self._used += self.count(text)
        return text


class ChatPolicy:
    """Any OpenAI-compatible chat endpoint. `body` is merged into each request; None takes a field out of it."""

    control: frozenset[str] = frozenset()  # a chat server does not name its control tokens

    def __init__(
        self,
        client: httpx.AsyncClient,
        url: str,
        *,
        model: str,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int | None = None,
        patience_s: float = 300.0,
        body: Mapping[str, Any] | None = None,
    ) -> None:
        self._client = client
        self._url = url.rstrip("/")
        self._model = model
        self._window: int | None = None
        self._asked_window = False
        self._sampling = {"model": model, "temperature": temperature, "top_p": top_p}
        self._seed = seed
        self._patience_s = patience_s
        self._body = dict(body or {})

    def converse(self, message: str, *, template: bool = True) -> ChatConversation | TextConversation:
        """A conversation of chat messages, or a raw text that is continued."""
        return ChatConversation(self, message) if template else TextConversation(self, message)

    async def window(self) -> int | None:
        """The model's window as vLLM tells it; None where the server does not. Asked once. Raises PolicyError."""
        if not self._asked_window:
            try:
                self._window = window_of(await self._call("GET", "/models"), self._model)
            except PolicyError as error:
                if error.status is None:
                    raise
            self._asked_window = True
        return self._window

    async def complete(
        self, text: str, *, max_tokens: int, stop: Sequence[str]
    ) -> tuple[dict[str, Any], dict[str, int]]:
        """The first continuation of `text` and the usage that the server reports. Raises PolicyError."""
        try:
            return await self._first(
                "/completions", {"prompt": text}, lambda choice: choice["text"], max_tokens=max_tokens, stop=stop
            )
        except PolicyError as error:
            if error.status in (404, 405):
                error.remedy = "this server continues no raw text: use one that does (vLLM), or send it as a message"
            raise

    async def chat(
        self, messages: Sequence[Mapping[str, str]], *, max_tokens: int, stop: Sequence[str]
    ) -> tuple[dict[str, Any], dict[str, int]]:
        """The first choice and the usage that the server reports. Raises PolicyError."""
        return await self._first(
            "/chat/completions",
            {"messages": list(messages)},
            lambda choice: content_of(choice["message"], url=f"{self._url}/chat/completions", error=PolicyError),
            max_tokens=max_tokens,
            stop=stop,
        )

    async def _first(
        self, path: str, asked: Mapping[str, Any], text: Callable[[Any], Any], *, max_tokens: int, stop: Sequence[str]
    ) -> tuple[dict[str, Any], dict[str, int]]:
        body = {**self._sampling, **seed_of(self._seed, asked), **asked, "max_tokens": max_tokens, "stop": list(stop)}
        body |= self._body
        answer = await self._call("POST", path, {name: value for name, value in body.items() if value is not None})
        try:
            choice = answer["choices"][0]
            if not isinstance(text(choice), str):
                raise TypeError("its content is not text")
        except (KeyError, IndexError, TypeError) as cause:
            raise PolicyError(f"{self._url}{path} answered in an unknown form: {str(answer)[:300]}") from cause
        was_cut(choice.get("finish_reason"), url=self._url + path, error=PolicyError)
        return choice, answer.get("usage") or {}

    async def _call(self, method: str, path: str, body: Any = None) -> Any:
        return await call_json(
            self._client, method, self._url + path, error=PolicyError, patience_s=self._patience_s, body=body
        )
