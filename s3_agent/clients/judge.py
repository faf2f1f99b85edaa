"""The judge: a frozen model that says whether an answer contains a golden answer (docs/originals.md#c3).

An unclear verdict counts as wrong, and the number of these is reported. A judge that can not be reached raises an
error; that is never a verdict.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import httpx
from pydantic import Field

from s3_agent.clients.chat_model import ChatModel, Message, ModelSettings, make_chat_model
from s3_agent.clients.generator import cached
from s3_agent.clients.replies import without_thinking
from s3_agent.errors import JudgeError
from s3_agent.guard import quoted

AccuracyRule = Literal["span", "judge", "span-or-judge"]
"""The span check, the judge, or the judge where the span check finds nothing (GenAcc, the published measure)."""
JudgePrompt = Literal["general", "mirage"]

_GENERAL = "Golden answers:"
_MIRAGE = "Golden Answers:"
_FIRM = "\n\nSay one word: yes or no."
_WORD = re.compile(r"\W*([^\W\d_]*)")


class JudgeSettings(ModelSettings):
    """How an answer is checked, and by which model if one is asked. `url` None: at the generator's address."""

    rule: AccuracyRule = "span"
    prompt: JudgePrompt = "general"
    url: str | None = None
    max_tokens: int | None = Field(default=10, ge=1)
    cache: Path | None = None
    cache_bytes: int = Field(default=1 << 28, ge=1 << 20)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judge said; `unclear` when it was neither yes nor no."""

    correct: bool
    unclear: bool = False


class Judge(Protocol):
    """What scoring needs of a judge. `rule` says whether the span check is done first."""

    rule: AccuracyRule

    async def check(self, question: str, answer: str, golds: Sequence[str]) -> Verdict:
        """Whether `answer` holds one of `golds`. Raises JudgeError."""
        ...


def judge_messages(question: str, answer: str, golds: Sequence[str], prompt: JudgePrompt) -> list[Message]:
    """The judge's question. In the general prompt, golds are always a Python list (docs/originals.md#c4).

    Nothing in question, answer and golds can write a heading of the prompt or a control token (`guard.quoted`).
    """
    question, answer, golds = quoted(question), quoted(answer), [quoted(gold) for gold in golds]
    if prompt == "mirage":
        listed = "\n".join(f"- {gold}" for gold in golds)
        text = (
            "You evaluate the answers of a question answering system.\n\n"
            f"Question: {question}\n\nSystem answer: {answer}\n\n{_MIRAGE}\n{listed}\n\n"
            "The system answer is correct if at least one of these holds: it has the same key information as a golden "
            "answer; it says the same in other words; it agrees with a golden answer in its facts.\n"
            "Answer only with yes or no."
        )
    else:
        text = (
            "Check whether the response contains any of the golden answers.\n\n"
            f"Response: {answer}\n\n{_GENERAL} {list(golds)}\n\n"
            "Answer directly with yes or no."
        )
    return [{"role": "user", "content": text}]


def read_verdict(reply: str) -> bool | None:
    """True for a reply that begins with the word yes, False for no, None for anything else, also for both.

    The judge's thinking before the verdict is not read.
    """
    reply = without_thinking(reply)
    match = _WORD.match(reply)
    word = match[1].lower() if match else ""
    other = {"yes": "no", "no": "yes"}.get(word)
    if other is None or re.search(rf"\b{other}\b", reply, re.IGNORECASE):
        return None
    return word == "yes"


class ModelJudge:
    """A judge that is a chat model. An unclear reply is asked for once more, firmly."""

    def __init__(
        self, model: ChatModel, *, prompt: JudgePrompt = "general", rule: AccuracyRule = "span-or-judge"
    ) -> None:
        self.rule: AccuracyRule = rule
        self._model = model
        self._prompt: JudgePrompt = prompt

    async def check(self, question: str, answer: str, golds: Sequence[str]) -> Verdict:
        [message] = judge_messages(question, answer, golds, self._prompt)
        for suffix in ("", _FIRM):
            verdict = read_verdict(await self._model.reply([{**message, "content": message["content"] + suffix}]))
            if verdict is not None:
                return Verdict(correct=verdict)
        return Verdict(correct=False, unclear=True)


def make_judge(client: httpx.AsyncClient, generator_url: str | None, settings: JudgeSettings) -> ModelJudge | None:
    """The judge that the settings name; None where only the span check decides."""
    if settings.rule == "span":
        return None
    model = make_chat_model(client, settings.url or generator_url, settings, error=JudgeError)
    model = cached(model, settings, settings.cache, max_bytes=settings.cache_bytes)
    return ModelJudge(model, prompt=settings.prompt, rule=settings.rule)
