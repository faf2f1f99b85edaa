"""The frozen generator (docs/generator.md): it answers from passages, over an OpenAI-compatible server or Claude."""

import json
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import httpx
import structlog
from pydantic import Field

from s3_agent.clients.answers.cache import CachedChat
from s3_agent.clients.chat_model import ChatReply, Message, ModelSettings, ServedModel, make_chat_model
from s3_agent.clients.model_server import ModelServer
from s3_agent.clients.prompts import CONTEXT, AnswerPrompt, answer_messages, read_answer
from s3_agent.clients.tokenizer import BYTES_PER_TOKEN, load_tokenizer
from s3_agent.errors import GeneratorError
from s3_agent.fitting import fit_passages
from s3_agent.types import Passage

log = structlog.get_logger()

ANSWER_ROOM_TOKENS = 256
_TRIES = 6
_REPLY_FORM = "reply 1"

answer_cut: ContextVar[bool] = ContextVar("answer_cut", default=False)
"""Whether the last answer in this asyncio task was cut at the generator's token limit."""


class GeneratorSettings(ModelSettings):
    """Which generator answers, and within which limits.

    `context_tokens` is its window; when not given, the server is asked (`/models`). `tokenizer` counts the tokens;
    without it the server does (`/tokenize`), else 3 bytes count as a token. `cache` is a folder that all workers share.
    """

    context_tokens: int | None = Field(default=None, ge=64)
    tokenizer: str | None = None
    cache: Path | None = None
    cache_bytes: int = Field(default=1 << 30, ge=1 << 20)


class Generator(Protocol):
    """What a rollout needs of a generator. `prompt` is how it is asked; None: its own default prompt."""

    async def fit(
        self, question: str, passages: Sequence[Passage], *, prompt: AnswerPrompt | None = None
    ) -> tuple[Passage, ...]:
        """The passages that its context window holds: the last shortened, later ones left out.

        Raises GeneratorError when the prompt does not fit even without passages.
        """
        ...

    async def answer(self, question: str, passages: Sequence[Passage], *, prompt: AnswerPrompt | None = None) -> str:
        """The answer text. Raises GeneratorError."""
        ...


class FrozenGenerator:
    """A chat model with an answering prompt and a token budget."""

    def __init__(
        self,
        model: ServedModel,
        settings: GeneratorSettings,
        *,
        client: httpx.AsyncClient,
        url: str | None,
        prompt: AnswerPrompt = CONTEXT,
    ) -> None:
        self.model = model
        self._settings = settings
        self._prompt = prompt
        self._server = None
        if url and settings.openai_compatible:
            self._server = ModelServer(
                client, url, settings.model, error=GeneratorError, patience_s=settings.patience_s
            )
        self._told_no_window = False

    def messages(
        self, question: str, passages: Sequence[Passage], *, prompt: AnswerPrompt | None = None
    ) -> list[Message]:
        """What it is told."""
        named = self._settings.tokenizer
        return answer_messages(
            question,
            passages,
            kind=self._settings.kind,
            prompt=prompt or self._prompt,
            control=load_tokenizer(named).control if named else frozenset(),
        )

    async def answer(self, question: str, passages: Sequence[Passage], *, prompt: AnswerPrompt | None = None) -> str:
        reply = await self.model.ask(self.messages(question, passages, prompt=prompt))
        answer_cut.set(reply.cut)
        return read_answer(reply.text, (prompt or self._prompt).style)

    async def fit(
        self, question: str, passages: Sequence[Passage], *, prompt: AnswerPrompt | None = None
    ) -> tuple[Passage, ...]:
        def messages(shown: Sequence[Passage]) -> list[Message]:
            return self.messages(question, shown, prompt=prompt)

        window = await self._known_window()
        room = None if window is None else window - (self._settings.max_tokens or ANSWER_ROOM_TOKENS)
        # No tokenizer makes more tokens than the text has bytes, except those of the chat template.
        if room is None or _bytes(messages(passages)) + 64 <= room:
            return tuple(passages)
        shown = tuple(passages)
        for _ in range(_TRIES):
            tokens = await self._tokens(messages(shown))
            if tokens <= room:
                return shown
            # Counting for every word would ask the server each time; the number of tokens grows with the bytes.
            per_byte = tokens / _bytes(messages(shown))
            shown = fit_passages(
                shown,
                render=lambda kept: "".join(message["content"] for message in messages(kept)),
                count=_scaled(per_byte),
                max_tokens=int(room * 0.98) - 8,
            )
        raise GeneratorError(
            f"the question and its prompt alone do not fit the generator's context of {window} tokens",
            remedy="raise generator.context_tokens, and the server's --max-model-len with it",
            status=413,
        )

    async def _known_window(self) -> int | None:
        if self._settings.context_tokens is not None or self._server is None:
            return self._settings.context_tokens
        window = await self._server.window()
        if window is None and not self._told_no_window:
            self._told_no_window = True
            log.warning(
                "the generator does not report its context window; long selections may be refused",
                remedy="set generator.context_tokens",
            )
        return window

    async def _tokens(self, messages: Sequence[Message]) -> int:
        if self._settings.tokenizer is not None:
            tokenizer = load_tokenizer(self._settings.tokenizer)
            return sum(len(tokenizer.encode(message["content"])) + 16 for message in messages)
        asked: dict[str, Any] = {"messages": list(messages), "add_generation_prompt": True}
        if kwargs := self._settings.added.get("chat_template_kwargs"):
            asked["chat_template_kwargs"] = kwargs
        counted = await self._server.count(asked) if self._server else None
        return -(-_bytes(messages) // BYTES_PER_TOKEN) + 16 * len(messages) if counted is None else counted


def _bytes(messages: Sequence[Message]) -> int:
    return sum(len(message["content"].encode()) for message in messages)


def _scaled(tokens_per_byte: float) -> Callable[[str], int]:
    return lambda text: int(len(text.encode()) * tokens_per_byte) + 1


class _AsText:
    """A model whose whole reply is one text, the form that the answer cache keeps."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model

    async def reply(self, messages: Sequence[Message]) -> str:
        return json.dumps(asdict(await self._model.ask(messages)))


class KeptReplies(ServedModel):
    """A model behind the answer cache in `folder`, which also keeps whether a reply was cut."""

    def __init__(self, model: ServedModel, settings: ModelSettings, folder: Path, *, max_bytes: int) -> None:
        # The kept text depends on its form too: a reply that is kept in another form is not read.
        settings = settings.model_copy(update={"identity": json.dumps([_REPLY_FORM, settings.identity])})
        self._cache = CachedChat(_AsText(model), settings, folder, max_bytes=max_bytes)

    async def ask(self, messages: Sequence[Message]) -> ChatReply:
        return ChatReply(**json.loads(await self._cache.reply(messages)))


def cached(model: ServedModel, settings: ModelSettings, folder: Path | None, *, max_bytes: int) -> ServedModel:
    """The model behind the cache in `folder`; the model itself when that is None."""
    return model if folder is None else KeptReplies(model, settings, folder, max_bytes=max_bytes)


def make_generator(
    client: httpx.AsyncClient,
    url: str | None,
    settings: GeneratorSettings,
    *,
    prompt: AnswerPrompt = CONTEXT,
) -> FrozenGenerator:
    """The generator that the settings name. `url` may be None only for Claude."""
    model = make_chat_model(client, url, settings, error=GeneratorError)
    model = cached(model, settings, settings.cache, max_bytes=settings.cache_bytes)
    return FrozenGenerator(model, settings, client=client, url=url, prompt=prompt)
