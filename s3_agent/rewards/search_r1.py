"""Search-R1's rewards, on what the policy and its environment wrote after the prompt (spec §8.3, §11 E6)."""

import re
from collections.abc import Sequence
from typing import Literal

from s3_agent.rewards import answer_match
from s3_agent.tags import bodies
from s3_agent.types import RewardResult, Task

_TAG = re.compile(r"(</?(?:think|search|information|answer)>)")
# What may follow what, outside and inside of the blocks; only white space stands between blocks.
_NEXT = {
    ("start", "<think>"): "think",
    ("think", "</think>"): "thought",
    ("thought", "<search>"): "search",
    ("search", "</search>"): "searched",
    ("searched", "<information>"): "information",
    ("information", "</information>"): "informed",
    ("informed", "<think>"): "think",
    ("thought", "<answer>"): "answer",
    ("answer", "</answer>"): "end",
}
_INSIDE = {"think", "search", "information", "answer"}


def final_answer(response: str) -> str | None:
    """The body of the last `<answer>` of the response; None when there is none."""
    found = list(bodies(response, "answer"))
    return found[-1].strip() if found else None


def exact_match(response: str, golds: Sequence[str]) -> bool:
    """Whether the last `<answer>` of the response is a gold, both normalised."""
    answer = final_answer(response)
    return answer is not None and answer_match.exact_match(answer, golds)


def well_formed(response: str) -> bool:
    """Whether the response is think, (search, information, think)*, answer, and nothing else."""
    state = "start"
    for part in _TAG.split(response):
        if _TAG.fullmatch(part):
            if (state, part) not in _NEXT:
                return False
            state = _NEXT[state, part]
        elif part.strip() and state not in _INSIDE:
            return False
    return state == "end"


def _retrieved(response: str, golds: Sequence[str]) -> bool:
    answers = [answer for gold in golds if (answer := answer_match.normalize_answer(gold))]
    blocks = [answer_match.normalize_answer(body) for body in bodies(response, "information")]
    return any(answer in block for block in blocks for answer in answers)


def format_reward(
    response: str, golds: Sequence[str], *, structure: float = 0.2, final: float = 0.1, retrieval: float = 0.0
) -> float:
    """Exact match with credit for form (Search-R1 v0.3): 0 to 1.

    Right and well formed 1, right only 1 - `structure`; well formed only `structure`, and `retrieval` more when some
    information block holds a gold; a wrong answer in no form `final`; none at all 0.
    """
    formed = well_formed(response)
    if exact_match(response, golds):
        return 1.0 if formed else 1.0 - structure
    if formed:
        return structure + (retrieval if _retrieved(response, golds) else 0.0)
    return 0.0 if final_answer(response) is None else final


def own_answer(task: Task, response: str, *, mode: Literal["exact_match", "format"]) -> RewardResult:
    """The reward of an agent that answers by itself; `accuracy` is exact match, as in Search-R1's paper."""
    matched = float(exact_match(response, task.golden_answers))
    scored = format_reward(response, task.golden_answers)
    return RewardResult(
        value=matched if mode == "exact_match" else scored,
        metrics={"accuracy": matched, "exact_match": matched, "format": float(well_formed(response))},
    )
