"""The prompts of the judge, each with how its reply is read: s3's two, and BrowseComp-Plus's.

`judge` asks them by the name in `judge.prompt`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from s3_agent.clients.replies import without_thinking

JudgePrompt = Literal["general", "mirage", "browsecomp_plus"]

_WORD = re.compile(r"\W*([^\W\d_]*)")
# A field's name plain or in bold, with the colon inside or outside of it; the first form that occurs counts.
_NAMED = (r"\*\*{0}:\*\*", r"\*\*{0}\*\*:", r"{0}:")
_CORRECT, _CONFIDENCE = (
    tuple(re.compile(form.format(name) + rf"\s*{value}", re.IGNORECASE) for form in _NAMED)
    for name, value in (("correct", "(yes|no)"), ("confidence", r"(\d+(?:\.\d+)?)"))
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judge said; `unclear` when it was neither yes nor no.

    `confidence` is how sure the answer says that it is, in percent; None if the judge reports none.
    """

    correct: bool
    unclear: bool = False
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class JudgeForm:
    """One prompt. `text` makes it of question, answer and golds, which can not write its headings any more.

    `read` gives None for an unclear reply; then the judge is asked once more with `firm` added, if there is one.
    `settings` are the defaults of `JudgeSettings` with this prompt.
    """

    text: Callable[[str, str, Sequence[str]], str]
    read: Callable[[str], Verdict | None]
    firm: str | None = "\n\nSay one word: yes or no."
    settings: Mapping[str, Any] = field(default_factory=dict)


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


def _word(reply: str) -> Verdict | None:
    verdict = read_verdict(reply)
    return None if verdict is None else Verdict(correct=verdict)


def _fields(reply: str) -> Verdict | None:
    reply = without_thinking(reply)
    correct, confidence = (_first(patterns, reply) for patterns in (_CORRECT, _CONFIDENCE))
    if correct is None:
        return None
    sure = None if confidence is None else min(float(confidence), 100.0)
    return Verdict(correct=correct.lower() == "yes", confidence=sure)


def _first(patterns: Sequence[re.Pattern[str]], text: str) -> str | None:
    found = (pattern.search(text) for pattern in patterns)
    return next((match[1] for match in found if match), None)


def _general(question: str, answer: str, golds: Sequence[str]) -> str:
    # Golds are always a Python list (docs/originals.md#c4).
    return (
        "Check whether the response contains any of the golden answers.\n\n"
        f"Response: {answer}\n\nGolden answers: {list(golds)}\n\n"
        "Answer directly with yes or no."
    )


def _mirage(question: str, answer: str, golds: Sequence[str]) -> str:
    listed = "\n".join(f"- {gold}" for gold in golds)
    return (
        "You evaluate the answers of a question answering system.\n\n"
        f"Question: {question}\n\nSystem answer: {answer}\n\nGolden Answers:\n{listed}\n\n"
        "The system answer is correct if at least one of these holds: it has the same key information as a golden "
        "answer; it says the same in other words; it agrees with a golden answer in its facts.\n"
        "Answer only with yes or no."
    )


def _browsecomp_plus(question: str, answer: str, golds: Sequence[str]) -> str:
    return (
        "Decide whether the [response] gives the [correct_answer] to the [question].\n\n"
        f"[question]: {question}\n\n[response]: {answer}\n\n[correct_answer]: {' or '.join(golds)}\n\n"
        "Write these five fields, each on a line of its own and in this order:\n\n"
        "extracted_final_answer: the final answer that the [response] gives, or None if it gives none.\n\n"
        "[correct_answer]: the [correct_answer] once more.\n\n"
        "reasoning: whether the two mean the same. Other words and more precise or additional correct details are "
        "fine. Compare only the answers: do not solve the [question], and do not defend another answer.\n\n"
        "correct: yes if they mean the same, or if numbers differ only by a small error; no otherwise, also if the "
        "extracted answer is ambiguous.\n\n"
        "confidence: the confidence between 0 and 100 percent that the [response] states; 100 if it states none."
    )


FORMS: Mapping[JudgePrompt, JudgeForm] = {
    "general": JudgeForm(_general, _word),
    "mirage": JudgeForm(_mirage, _word),
    # Their judge's model, without thinking. Theirs samples without a seed; see docs/evaluation.md for its settings.
    "browsecomp_plus": JudgeForm(
        _browsecomp_plus,
        _fields,
        firm=None,
        settings={
            "rule": "judge",
            "model": "Qwen/Qwen3-32B",
            "max_tokens": 4096,
            "chat_template_kwargs": {"enable_thinking": False},
            "request": {"seed": 0},
        },
    ),
}
