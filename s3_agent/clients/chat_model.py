"""A frozen model that is asked by chat messages at temperature 0: the base of the generator and the judge.

A transport failure raises after retries and never becomes an empty reply (docs/promises.md, 1). Neither does a
generation that the server filtered, aborted or did not finish (`replies`).
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

import httpx
from pydantic import BaseModel, ConfigDict, Field, model_validator

from retrieval_server.proxies import is_loopback
from s3_agent.clients.http import PATIENCE_S, call_json
from s3_agent.clients.model_server import ModelServer
from s3_agent.clients.replies import content_of, most_tokens, require_answer, was_cut, written_tokens
from s3_agent.errors import BoundaryError, ConfigError

ModelKind = Literal["openai", "anthropic", "bedrock"]
Message = dict[str, str]

CLAUDE_RETRIES = 8
CLAUDE_MAX_TOKENS = 500  # its API needs a bound; s3's own
RETRIED_STATUS = (408, 409, 429)  # by the anthropic client, besides every 5xx
_CLAUDE_REMEDY = "check the credentials, region and model name"


class ModelSettings(BaseModel):
    """Which model, and how long to wait for it, in seconds (None: until the rollout's attempt ends, or 120 s outside of
    a rollout). `max_tokens=None` leaves the limit to the server.

    `chat_template_kwargs` go to the chat template (`enable_thinking: false`), `request` is merged into each request
    (null takes a field out); both are only for OpenAI-compatible servers. `identity` names everything else that a reply
    depends on: weights, precision, server and processor. Replies of one identity may be kept longer than a run lasts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ModelKind = "openai"
    model: str = "Qwen/Qwen2.5-14B-Instruct-GPTQ-Int4"
    max_tokens: int | None = Field(default=None, ge=1)
    patience_s: float | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    request: dict[str, Any] = Field(default_factory=dict)
    identity: str | None = None

    @property
    def openai_compatible(self) -> bool:
        """Whether it has an OpenAI-compatible address: then we can serve it, and ask its `/models`."""
        return MODEL_KINDS[self.kind].openai_compatible

    @model_validator(mode="after")
    def _kind_takes_them(self) -> Self:
        if not self.openai_compatible and self.added:
            raise ValueError(f"kind {self.kind} takes no chat_template_kwargs and no request")
        return self

    @property
    def added(self) -> dict[str, Any]:
        """Fields that are added to each request; those of `request` replace the others."""
        templated = {"chat_template_kwargs": self.chat_template_kwargs} if self.chat_template_kwargs else {}
        return {**templated, **self.request}

    @property
    def named(self) -> str:
        """Kind, model and the added fields: together they distinguish its replies from another model's."""
        added = f" {json.dumps(self.added, sort_keys=True)}" if self.added else ""
        return f"{self.kind}:{self.model}{added}"


@dataclass(frozen=True, slots=True)
class ChatReply:
    """A reply with the tokens that were read and written for it; None where the server does not count them.

    `cut`: it ended at its token limit.
    """

    text: str
    prompt_tokens: int | None = None
    response_tokens: int | None = None
    cut: bool = False


class ChatModel(Protocol):
    """What answers to messages."""

    async def reply(self, messages: Sequence[Message]) -> str:
        """The reply's text. Raises the BoundaryError that the model was made with."""
        ...


class ServedModel(ABC):
    """A model behind an endpoint that reports how many tokens a reply took."""

    @abstractmethod
    async def ask(self, messages: Sequence[Message]) -> ChatReply:
        """The reply, its tokens, and whether it was cut. Raises the BoundaryError that the model was made with."""

    async def reply(self, messages: Sequence[Message]) -> str:
        """The reply's text."""
        return (await self.ask(messages)).text


class OpenAIChat(ServedModel):
    """A model behind an OpenAI-compatible `/chat/completions`."""

    def __init__(
        self, client: httpx.AsyncClient, url: str, settings: ModelSettings, *, error: type[BoundaryError]
    ) -> None:
        self._client = client
        self._url = url.rstrip("/") + "/chat/completions"
        self._settings = settings
        self._error = error
        self._server = ModelServer(client, url, settings.model, error=error, patience_s=settings.patience_s)

    async def ask(self, messages: Sequence[Message]) -> ChatReply:
        body: dict[str, Any] = {
            "model": self._settings.model,
            "messages": list(messages),
            "temperature": 0.0,
            "top_p": 1.0,
            "frequency_penalty": 0.0,
            "presence_penalty": 0.0,
            "max_tokens": self._settings.max_tokens,
            **await self._server.sampling(),
            **self._settings.added,
        }
        body = {name: value for name, value in body.items() if value is not None}
        answer = await call_json(
            self._client, "POST", self._url, error=self._error, body=body, patience_s=self._settings.patience_s
        )
        where: Any = {"url": self._url, "error": self._error}
        try:
            choice = answer["choices"][0]
            usage = answer.get("usage") or {}
            cut = was_cut(choice.get("finish_reason"), asked=most_tokens(body), written=written_tokens(usage), **where)
            text = require_answer(content_of(choice["message"], **where), **where)
            return ChatReply(text, usage.get("prompt_tokens"), usage.get("completion_tokens"), cut)
        except (AttributeError, KeyError, IndexError, TypeError) as cause:
            raise self._error(f"{self._url} answered in an unknown form: {str(answer)[:300]}") from cause


class ClaudeChat(ServedModel):
    """Claude through its API or Bedrock; credentials are read by the anthropic client when it is first made."""

    def __init__(self, settings: ModelSettings, *, url: str | None = None, error: type[BoundaryError]) -> None:
        try:
            import anthropic
        except ImportError as cause:
            raise ConfigError(
                f"{error.boundary}.kind={settings.kind} needs the anthropic client",
                remedy="install it: pip install 's3-agent[claude]'",
            ) from cause
        self._api_error = anthropic.APIError
        self._settings = settings
        self._error = error
        make = anthropic.AsyncAnthropicBedrock if settings.kind == "bedrock" else anthropic.AsyncAnthropic
        try:
            patience = PATIENCE_S if settings.patience_s is None else settings.patience_s
            # Without a proxy to this machine; to others the client follows the environment by itself.
            direct = url is not None and is_loopback(httpx.URL(url).host)
            # anthropic 2 reads the proxies of the environment whatever `trust_env` says; these go before them.
            none: dict[str, Any] = dict.fromkeys(("http://", "https://", "all://"))
            http = anthropic.DefaultAsyncHttpxClient(trust_env=False, mounts=none) if direct else None
            self._client: Any = make(base_url=url, max_retries=CLAUDE_RETRIES, timeout=patience, http_client=http)
        except (anthropic.AnthropicError, ValueError) as cause:
            raise ConfigError(f"{error.boundary}.kind={settings.kind}: {cause}", remedy=_CLAUDE_REMEDY) from cause

    async def ask(self, messages: Sequence[Message]) -> ChatReply:
        try:
            message = await self._client.messages.create(
                model=self._settings.model,
                max_tokens=self._settings.max_tokens or CLAUDE_MAX_TOKENS,
                messages=list(messages),
                extra_body={"temperature": 0.0},  # anthropic 2 has no parameter of that name any more
            )
        except self._api_error as cause:
            status = getattr(cause, "status_code", None)
            refused = status is not None and status < 500 and status not in RETRIED_STATUS
            raise self._error(
                f"Claude ({self._settings.kind}) failed: {cause}",
                remedy=_CLAUDE_REMEDY,
                status=status if refused else None,
            ) from cause
        except TypeError as cause:  # how the anthropic client says that it has no credentials
            raise ConfigError(f"Claude ({self._settings.kind}): {cause}", remedy=_CLAUDE_REMEDY) from cause
        where: Any = {"url": f"Claude ({self._settings.kind})", "error": self._error}
        asked = self._settings.max_tokens or CLAUDE_MAX_TOKENS
        cut = was_cut(message.stop_reason, asked=asked, written=message.usage.output_tokens, **where)
        text = "".join(block.text for block in message.content if block.type == "text")
        return ChatReply(require_answer(text, **where), message.usage.input_tokens, message.usage.output_tokens, cut)


def make_chat_model(
    client: httpx.AsyncClient, url: str | None, settings: ModelSettings, *, error: type[BoundaryError]
) -> ServedModel:
    """The model that the settings name. `url` may be None only for a kind that is not OpenAI-compatible."""
    return MODEL_KINDS[settings.kind].make(client, url, settings, error=error)


def _openai(
    client: httpx.AsyncClient, url: str | None, settings: ModelSettings, *, error: type[BoundaryError]
) -> ServedModel:
    if url is None:
        raise ConfigError(
            f"an OpenAI-compatible {error.boundary} needs an address", remedy=f"set {error.boundary}.url=http://…/v1"
        )
    return OpenAIChat(client, url, settings, error=error)


def _claude(
    client: httpx.AsyncClient, url: str | None, settings: ModelSettings, *, error: type[BoundaryError]
) -> ServedModel:
    return ClaudeChat(settings, url=url, error=error)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of server. `system_message`: instructions are a message of their own, as the originals have it."""

    make: Callable[..., ServedModel]
    openai_compatible: bool
    system_message: bool


MODEL_KINDS: dict[ModelKind, Kind] = {
    "openai": Kind(_openai, openai_compatible=True, system_message=True),
    "anthropic": Kind(_claude, openai_compatible=False, system_message=False),
    "bedrock": Kind(_claude, openai_compatible=False, system_message=False),
}
