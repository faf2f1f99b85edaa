"""What a naive-RAG answer depends on, so that answers of other parts are told apart, field by field."""

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
    """What a naive-RAG answer depends on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: str
    retriever: str
    topk: int
    generator: str
    max_tokens: int | None
    prompt: str
    judge: str = "span"

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
    ) -> Self:
        """The fingerprint for a corpus hash, an index description, a generator and what checks its answers."""
        probe = [Passage(id="0", title="title", text="text")]
        prompt = _digest(answer_messages("question", probe, kind=generator.kind, prompt=AnswerPrompt(layout=layout)))
        checked = "span"
        if judge is not None and judge.rule != "span":
            asked = _digest(judge_messages("question", "answer", ["gold"], judge.prompt))
            checked = f"{judge.rule}:{judge.kind}:{judge.model}:{asked}"
        return cls(
            corpus=corpus,
            retriever=retriever,
            topk=topk,
            generator=f"{generator.kind}:{generator.model}",
            max_tokens=generator.max_tokens,
            prompt=prompt,
            judge=checked,
        )

    @property
    def digest(self) -> str:
        """A short name of it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]
