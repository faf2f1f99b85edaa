"""Records what a naive-RAG answer depends on, so that a cache with other inputs is recognised, field by field."""

import hashlib
import json
from collections.abc import Sequence
from typing import Self

from pydantic import BaseModel, ConfigDict

from s3_agent.clients.chat_model import Message
from s3_agent.clients.generator import GeneratorSettings
from s3_agent.clients.judge import JudgeSettings, judge_messages
from s3_agent.clients.prompts import AnswerPrompt, ContextLayout, answer_messages
from s3_agent.types import Passage


def _digest(messages: Sequence[Message]) -> str:
    return hashlib.sha256(json.dumps(messages).encode()).hexdigest()


class Fingerprint(BaseModel):
    """What a naive-RAG answer depends on, besides the question and its golden answers.

    `window` is the generator's context in tokens, counted with `tokenizer`: passages that do not fit are cut. None:
    unknown, or counted by the server.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: str
    retriever: str
    topk: int
    generator: str
    max_tokens: int | None
    prompt: str
    judge: str = "span"
    window: int | None = None
    tokenizer: str | None = None

    @classmethod
    def of(
        cls,
        *,
        corpus: str,
        retriever: str,
        topk: int,
        generator: GeneratorSettings,
        layout: ContextLayout = "selected",
        judge: JudgeSettings | None = None,
        window: int | None = None,
    ) -> Self:
        """The fingerprint for a corpus hash, an index description, a generator and the check of its answers.

        `window` is that of the generator's server, used if the settings give none.
        """
        probe = [Passage(id="0", title="title", text="text")]
        prompt = _digest(answer_messages("question", probe, kind=generator.kind, prompt=AnswerPrompt(layout=layout)))
        checked = "span"
        if judge is not None and judge.rule != "span":
            asked = _digest(judge_messages("question", "answer", ["gold"], judge.prompt))
            checked = f"{judge.rule}:{judge.named}:{judge.max_tokens}:{asked}"
        return cls(
            corpus=corpus,
            retriever=retriever,
            topk=topk,
            generator=generator.named,
            max_tokens=generator.max_tokens,
            prompt=prompt,
            judge=checked,
            window=generator.context_tokens or window,
            tokenizer=generator.tokenizer,
        )

    def differences(self, wanted: Self) -> list[str]:
        """The fields that differ from `wanted`, as text for messages. A window unknown on one side is no difference."""
        mine, other = self.model_dump(), wanted.model_dump()
        unknown = {"window"} if self.window is None or wanted.window is None else set()
        different = [key for key in other if mine[key] != other[key] and key not in unknown]
        return [f"{key} is {mine[key]!r}, not {other[key]!r}" for key in different]

    @property
    def digest(self) -> str:
        """A short name of it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]
