"""The frozen generator: answers a question from passages, over an OpenAI-compatible server or Claude (spec §3).

Answers are asked for at temperature 0. A transport failure raises after retries and is never an empty answer.
"""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import httpx
from pydantic import BaseModel, ConfigDict, Field

from s3_agent.clients.http import call_json
from s3_agent.errors import ConfigError, GeneratorError
from s3_agent.tags import neutral
from s3_agent.types import Passage

GeneratorKind = Literal["openai", "anthropic", "bedrock"]

_LEAD_IN = "Use the following contexts (some may be irrelevant) as needed to answer the question."
CLAUDE_RETRIES = 8
RETRIED_STATUS = (408, 409, 429)  # by the anthropic client, besides every 5xx
_CLAUDE_REMEDY = "check the credentials, region and model name"
_DIRECT = "Important: give the answer directly, without any other text and without thinking."


class GeneratorSettings(BaseModel):
    """Which generator answers, and within which limits. `max_tokens=None` leaves the bound to the server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: GeneratorKind = "openai"
    model: str = "Qwen/Qwen2.5-14B-Instruct-GPTQ-Int4"
    max_tokens: int | None = Field(default=None, ge=1)
    patience_s: float = 120.0


class Generator(Protocol):
    """What a rollout needs of a generator."""

    async def answer(self, question: str, passages: Sequence[Passage]) -> str:
        """The answer text. Raises GeneratorError."""
        ...


def render_context(passages: Sequence[Passage]) -> str:
    """Selected passages as the generator reads them (spec §2.1): numbered, titles unquoted, blank lines between."""
    return "".join(
        f"Doc {number} (Title: {neutral(passage.title.strip(chr(34)))})\n{neutral(passage.text)}\n\n"
        for number, passage in enumerate(passages, 1)
    )


def answer_messages(question: str, passages: Sequence[Passage]) -> list[dict[str, str]]:
    """The answering prompt as chat messages (spec §3.2)."""
    system = f"{_LEAD_IN}\n\nContexts:\n{render_context(passages)}\n{_DIRECT}"
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


def claude_message(question: str, passages: Sequence[Passage]) -> list[dict[str, str]]:
    """The same pieces in one user message (spec §3.2)."""
    text = f"{_LEAD_IN}\n\nContexts:\n{render_context(passages)}\nQuestion: {question}\n\n{_DIRECT}"
    return [{"role": "user", "content": text}]


class OpenAIGenerator:
    """A generator behind an OpenAI-compatible `/chat/completions`."""

    def __init__(self, client: httpx.AsyncClient, url: str, settings: GeneratorSettings) -> None:
        self._client = client
        self._url = url.rstrip("/") + "/chat/completions"
        self._settings = settings

    async def answer(self, question: str, passages: Sequence[Passage]) -> str:
        body: dict[str, Any] = {
            "model": self._settings.model,
            "messages": answer_messages(question, passages),
            "temperature": 0.0,
            "top_p": 1.0,
            "frequency_penalty": 0.0,
            "presence_penalty": 0.0,
        }
        if self._settings.max_tokens is not None:
            body["max_tokens"] = self._settings.max_tokens
        answer = await call_json(
            self._client, "POST", self._url, error=GeneratorError, body=body, patience_s=self._settings.patience_s
        )
        try:
            return answer["choices"][0]["message"]["content"] or ""
        except (KeyError, IndexError, TypeError) as cause:
            raise GeneratorError(f"{self._url} answered in an unknown form: {str(answer)[:300]}") from cause


class ClaudeGenerator:
    """Claude through its API or Bedrock; credentials are read by the anthropic client when it is first made."""

    def __init__(self, settings: GeneratorSettings, *, url: str | None = None) -> None:
        try:
            import anthropic
        except ImportError as cause:
            raise ConfigError(
                f"generator.kind={settings.kind} needs the anthropic client",
                remedy="install it: pip install 's3-agent[claude]'",
            ) from cause
        self._api_error = anthropic.APIError
        self._settings = settings
        make = anthropic.AsyncAnthropicBedrock if settings.kind == "bedrock" else anthropic.AsyncAnthropic
        try:
            self._client: Any = make(base_url=url, max_retries=CLAUDE_RETRIES, timeout=settings.patience_s)
        except (anthropic.AnthropicError, ValueError) as cause:
            raise ConfigError(f"generator.kind={settings.kind}: {cause}", remedy=_CLAUDE_REMEDY) from cause

    async def answer(self, question: str, passages: Sequence[Passage]) -> str:
        try:
            message = await self._client.messages.create(
                model=self._settings.model,
                max_tokens=self._settings.max_tokens or 500,
                messages=claude_message(question, passages),
                extra_body={"temperature": 0.0},  # anthropic 2 has no parameter of that name any more
            )
        except self._api_error as cause:
            status = getattr(cause, "status_code", None)
            refused = status is not None and status < 500 and status not in RETRIED_STATUS
            raise GeneratorError(
                f"Claude ({self._settings.kind}) failed: {cause}",
                remedy=_CLAUDE_REMEDY,
                status=status if refused else None,
            ) from cause
        except TypeError as cause:  # how the anthropic client says that it has no credentials
            raise ConfigError(f"Claude ({self._settings.kind}): {cause}", remedy=_CLAUDE_REMEDY) from cause
        return "".join(block.text for block in message.content if block.type == "text")


def make_generator(client: httpx.AsyncClient, url: str | None, settings: GeneratorSettings) -> Generator:
    """The generator that the settings name. `url` may be None for Claude alone."""
    if settings.kind != "openai":
        return ClaudeGenerator(settings, url=url)
    if url is None:
        raise ConfigError("an OpenAI-compatible generator needs an address", remedy="set generator.url=http://…/v1")
    return OpenAIGenerator(client, url, settings)
