"""A policy behind `/chat/completions`, for endpoints that take no token ids (hosted models, in evaluation).

Observations are sent as user messages, and token counts are the server's or estimates. Its episodes are therefore never
trained on; the agents are the same.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx

from s3_agent.clients.http import call_json
from s3_agent.clients.model_server import MOST_STOPS, ModelServer, cut_at
from s3_agent.clients.policy import Reply, Role, seed_of
from s3_agent.clients.replies import content_of, most_tokens, was_cut, written_tokens
from s3_agent.clients.tokenizer import BYTES_PER_TOKEN, ChatTemplate
from s3_agent.errors import ContextFull, PolicyError
from s3_agent.guard import without_control

TEMPLATE_TOKENS = 64
"""What a server's chat template may add to the messages, a default system message included; 16 more for each."""


def close_stop(before: str, text: str, stop: Sequence[str]) -> str:
    """`text` up to the first stop string; one that the server removed is added again where its tag is still open.

    `before` is what the policy read last: an observation may have opened the tag (docs/originals.md#a2).
    """
    if not stop or any(mark in text for mark in stop):
        return cut_at(text, stop)
    opened = [(f"{before}{text}".rfind(mark.replace("</", "<")), mark) for mark in stop]
    position, mark = max(opened)
    return text + mark if position > f"{before}{text}".rfind(mark) else text


def chat_body(template: ChatTemplate, request: Mapping[str, Any]) -> dict[str, Any]:
    """What is merged into each chat request: the template's variables, and `request`, whose fields replace others."""
    kwargs = template.chat_template_kwargs
    return {**({"chat_template_kwargs": kwargs} if kwargs else {}), **request}


class _Counted:
    """A conversation without a tokenizer: its length is the server's count or an estimate."""

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
        choice, usage = await self._policy.chat(self._messages, max_tokens=max_tokens, stop=stop, read=self._used)
        text = cut_at(choice["message"]["content"] or "", stop[MOST_STOPS:])
        # vLLM says which stop string it met, and None when the policy ended its turn itself.
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
        choice, usage = await self._policy.complete(self._text, max_tokens=max_tokens, stop=stop, read=self._used)
        text = cut_at(choice["text"], stop[MOST_STOPS:])
        self._text += text
        return self._reply(text, usage)

    def observe(self, text: str, *, role: Role = "assistant") -> str:
        self._text += text
        self._used += self.count(text)
        return text


class ChatPolicy:
    """Any OpenAI-compatible chat endpoint. `body` is merged into each request; None takes a field out of it.

    Its window is the smaller of `context_tokens` and what the server reports. Each request asks only for as many tokens
    as the window still holds. If the prompt could be too long at one byte per token, the server counts it
    (`/tokenize`); if the server can not, 3 bytes count as a token.
    """

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
        patience_s: float | None = None,
        body: Mapping[str, Any] | None = None,
        context_tokens: int | None = None,
    ) -> None:
        self._client = client
        self._url = url.rstrip("/")
        self._server = ModelServer(client, url, model, error=PolicyError, patience_s=patience_s)
        self._context_tokens = context_tokens
        self._sampling = {"model": model, "temperature": temperature, "top_p": top_p}
        self._seed = seed
        self._patience_s = patience_s
        self._body = dict(body or {})

    def converse(self, message: str, *, template: bool = True) -> ChatConversation | TextConversation:
        """A conversation of chat messages, or a raw text that is continued."""
        return ChatConversation(self, message) if template else TextConversation(self, message)

    async def window(self) -> int | None:
        """The model's window; None where neither the server nor the recipe gives it. Raises PolicyError."""
        told = await self._server.window()
        return min((size for size in (told, self._context_tokens) if size is not None), default=None)

    async def complete(
        self, text: str, *, max_tokens: int, stop: Sequence[str], read: int = 0
    ) -> tuple[dict[str, Any], dict[str, int]]:
        """The first continuation of `text` and the usage that the server reports.

        `read` estimates the tokens of the prompt. Raises ContextFull and PolicyError.
        """
        room = await self._room(max_tokens, {"prompt": text}, texts=[text], read=read)
        try:
            return await self._first(
                "/completions", {"prompt": text}, lambda choice: choice["text"], max_tokens=room, stop=stop
            )
        except PolicyError as error:
            if error.status in (404, 405):
                error.remedy = "this server continues no raw text: use one that does (vLLM), or send it as a message"
            raise

    async def chat(
        self, messages: Sequence[Mapping[str, str]], *, max_tokens: int, stop: Sequence[str], read: int = 0
    ) -> tuple[dict[str, Any], dict[str, int]]:
        """The first choice and the usage that the server reports.

        `read` estimates the tokens of the messages. Raises ContextFull and PolicyError.
        """
        asked: dict[str, Any] = {"messages": list(messages), "add_generation_prompt": True}
        if kwargs := self._body.get("chat_template_kwargs"):
            asked["chat_template_kwargs"] = kwargs
        texts = [message["content"] for message in messages]
        return await self._first(
            "/chat/completions",
            {"messages": list(messages)},
            lambda choice: content_of(choice["message"], url=f"{self._url}/chat/completions", error=PolicyError),
            max_tokens=await self._room(max_tokens, asked, texts=texts, read=read),
            stop=stop,
        )

    async def _room(self, wanted: int, asked: Mapping[str, Any], *, texts: Sequence[str], read: int) -> int:
        """How many of the `wanted` tokens the window holds after the prompt. Raises ContextFull for none."""
        if (window := await self.window()) is None:
            return wanted
        template = TEMPLATE_TOKENS + 16 * len(texts)
        # No tokenizer makes more tokens than the text has bytes.
        if sum(len(text.encode(errors="replace")) for text in texts) + template + wanted <= window:
            return wanted
        tokens = await self._server.count(asked)
        if tokens is None:
            tokens = read + template
        if tokens >= window:
            raise ContextFull(f"the prompt has {tokens} tokens, the policy's window is {window}")
        return min(wanted, window - tokens)

    async def _first(
        self, path: str, asked: Mapping[str, Any], text: Callable[[Any], Any], *, max_tokens: int, stop: Sequence[str]
    ) -> tuple[dict[str, Any], dict[str, int]]:
        body = {
            **self._sampling,
            **seed_of(self._seed, asked),
            **asked,
            "max_tokens": max_tokens,
            "stop": list(stop[:MOST_STOPS]),
            **await self._server.sampling(),
            **self._body,
        }
        body = {name: value for name, value in body.items() if value is not None}
        answer = await self._call("POST", path, body)
        try:
            choice = answer["choices"][0]
            if not isinstance(text(choice), str):
                raise TypeError("its content is not text")
        except (KeyError, IndexError, TypeError) as cause:
            raise PolicyError(f"{self._url}{path} answered in an unknown form: {str(answer)[:300]}") from cause
        usage = answer.get("usage") or {}
        was_cut(
            choice.get("finish_reason"),
            url=self._url + path,
            error=PolicyError,
            asked=most_tokens(body),
            written=written_tokens(usage),
        )
        return choice, usage

    async def _call(self, method: str, path: str, body: Any = None) -> Any:
        return await call_json(
            self._client, method, self._url + path, error=PolicyError, patience_s=self._patience_s, body=body
        )
