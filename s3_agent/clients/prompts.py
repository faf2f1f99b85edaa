"""The prompts of frozen models: the answering prompts and the contexts in them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from s3_agent.clients.chat_model import MODEL_KINDS, Message, ModelKind
from s3_agent.clients.replies import without_thinking
from s3_agent.guard import neutral
from s3_agent.tags import bodies
from s3_agent.types import Passage

PromptStyle = Literal["context", "zero_shot", "cot"]
"""Answer from passages, without any, or without any and step by step."""
ContextLayout = Literal["selected", "lines"]
"""Title and text on lines of their own (s3, Search-R1), or one line a document (naive RAG; docs/originals.md#b6)."""


@dataclass(frozen=True, slots=True)
class AnswerPrompt:
    """How a generator is asked. `empty` replaces the contexts if there are none."""

    style: PromptStyle = "context"
    layout: ContextLayout = "selected"
    empty: str = ""


CONTEXT = AnswerPrompt()

_LEAD_IN = "Use the following contexts (some may be irrelevant) as needed to answer the question."
_DIRECT = "Important: give the answer directly, without any other text and without thinking."
_STEPS = """\
Solve the question step by step:
1. Think about what is asked and what you know.
2. Show your reasoning.
3. Give the final answer, as short as possible, between <answer> and </answer>.

For example:
<think>
your reasoning
</think>
<answer>
the final answer
</answer>"""


def render_context(
    passages: Sequence[Passage], layout: ContextLayout = "selected", control: frozenset[str] = frozenset()
) -> str:
    """Passages as the generator reads them, numbered from 1; nothing in them acts as a tag or a control token."""

    def shown(passage: Passage) -> tuple[str, str]:
        return neutral(passage.title.strip(chr(34)), control), neutral(passage.text, control)

    numbered = [(number, *shown(passage)) for number, passage in enumerate(passages, 1)]
    if layout == "lines":
        return "".join(f'Doc {number} (Title: "{title}") {text}\n' for number, title, text in numbered)
    return "".join(f"Doc {number} (Title: {title})\n{text}\n\n" for number, title, text in numbered)


def answer_messages(
    question: str,
    passages: Sequence[Passage],
    *,
    kind: ModelKind = "openai",
    prompt: AnswerPrompt = CONTEXT,
    control: frozenset[str] = frozenset(),
) -> list[Message]:
    """The answering prompt: instructions from the system and the question from the user, all in one for Claude.

    `control` are the control tokens of the generator's tokenizer, where it is known.
    """
    question = neutral(question, control)
    if prompt.style == "context":
        context = render_context(passages, prompt.layout, control) or prompt.empty
        contexts = f"{_LEAD_IN}\n\nContexts:\n{context}\n"
        if not MODEL_KINDS[kind].system_message:
            return [{"role": "user", "content": f"{contexts}Question: {question}\n\n{_DIRECT}"}]
        system = contexts + _DIRECT
    else:
        system = _DIRECT if prompt.style == "zero_shot" else _STEPS
        if not MODEL_KINDS[kind].system_message:
            return [{"role": "user", "content": f"Question: {question}\n\n{system}"}]
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


def read_answer(reply: str, style: PromptStyle) -> str:
    """The answer in a reply: the first `<answer>` of step-by-step replies, else all of it; without thinking."""
    reply = without_thinking(reply)
    if style != "cot":
        return reply
    return next((body.strip() for body in bodies(reply, "answer")), reply)
