"""Whether an answer is correct: by span, by exact match, or by the judge."""

from dataclasses import dataclass

from s3_agent.clients.judge import Judge
from s3_agent.rewards.answer_match import exact_match, span_match, token_f1
from s3_agent.types import Task


@dataclass(frozen=True, slots=True)
class Accuracy:
    """1 or 0 by the rule, and the checks that led to it."""

    value: float
    metrics: dict[str, float]


async def check_answer(task: Task, answer: str, *, judge: Judge | None) -> Accuracy:
    """Whether `answer` is correct: by span, or as the judge's rule says (docs/generator.md).

    Raises JudgeError; an unclear verdict counts as wrong and is reported.
    """
    span = span_match(answer, task.golden_answers)
    metrics = {
        "span": float(span),
        "exact_match": float(exact_match(answer, task.golden_answers)),
        "f1": token_f1(answer, task.golden_answers),
    }
    correct = span
    if judge is not None and not (span and judge.rule == "span-or-judge"):
        golds = [gold for gold in task.golden_answers if gold.strip()]
        verdict = await judge.check(task.question, answer, golds)
        correct = verdict.correct
        metrics |= {"judge": float(verdict.correct), "judge_unclear": float(verdict.unclear)}
        metrics |= {} if verdict.confidence is None else {"confidence": verdict.confidence}
    return Accuracy(float(correct), metrics)
