"""The judge: a frozen model that says whether an answer contains a golden answer (docs/originals.md#c3).

An unclear verdict counts as wrong, and the number of these is reported. A judge that can not be reached raises an
error; that is never a verdict.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import httpx
from pydantic import Field, model_validator

from s3_agent.clients.chat_model import ChatModel, Message, ModelSettings, make_chat_model
from s3_agent.clients.generator import cached
from s3_agent.clients.judge_forms import FORMS, JudgePrompt, Verdict
from s3_agent.errors import JudgeError
from s3_agent.guard import quoted

AccuracyRule = Literal["span", "judge", "span-or-judge"]
"""The span check, the judge, or the judge where the span check finds nothing (GenAcc, the published measure)."""


class JudgeSettings(ModelSettings):
    """How an answer is checked, and by which model if one is asked. `url` None: at the generator's address.

    A prompt may bring other defaults than these (`judge_forms.FORMS`).
    """

    rule: AccuracyRule = "span"
    prompt: JudgePrompt = "general"
    url: str | None = None
    max_tokens: int | None = Field(default=10, ge=1)
    cache: Path | None = None
    cache_bytes: int = Field(default=1 << 28, ge=1 << 20)

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_prompt(cls, values: Any) -> Any:
        form = FORMS.get(values.get("prompt", "general")) if isinstance(values, dict) else None
        return values if form is None else {**form.settings, **values}


class Judge(Protocol):
    """What scoring needs of a judge. `rule` says whether the span check is done first."""

    rule: AccuracyRule

    async def check(self, question: str, answer: str, golds: Sequence[str]) -> Verdict:
        """Whether `answer` holds one of `golds`. Raises JudgeError."""
        ...


def judge_messages(question: str, answer: str, golds: Sequence[str], prompt: JudgePrompt) -> list[Message]:
    """The judge's question.

    Nothing in question, answer and golds can write a heading of the prompt or a control token (`guard.quoted`).
    """
    text = FORMS[prompt].text(quoted(question), quoted(answer), [quoted(gold) for gold in golds])
    return [{"role": "user", "content": text}]


class ModelJudge:
    """A judge that is a chat model. An unclear reply is asked for once more if the prompt says so."""

    def __init__(
        self, model: ChatModel, *, prompt: JudgePrompt = "general", rule: AccuracyRule = "span-or-judge"
    ) -> None:
        self.rule: AccuracyRule = rule
        self._model = model
        self._prompt: JudgePrompt = prompt

    async def check(self, question: str, answer: str, golds: Sequence[str]) -> Verdict:
        form = FORMS[self._prompt]
        [message] = judge_messages(question, answer, golds, self._prompt)
        for suffix in ("", *([form.firm] if form.firm else [])):
            verdict = form.read(await self._model.reply([{**message, "content": message["content"] + suffix}]))
            if verdict is not None:
                return verdict
        return Verdict(correct=False, unclear=True)


def make_judge(client: httpx.AsyncClient, generator_url: str | None, settings: JudgeSettings) -> ModelJudge | None:
    """The judge that the settings name; None where only the span check decides."""
    if settings.rule == "span":
        return None
    model = make_chat_model(client, settings.url or generator_url, settings, error=JudgeError)
    model = cached(model, settings, settings.cache, max_bytes=settings.cache_bytes)
    return ModelJudge(model, prompt=settings.prompt, rule=settings.rule)
