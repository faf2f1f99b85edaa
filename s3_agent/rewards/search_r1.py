"""Search-R1's rewards, on what the policy and its environment wrote after the prompt (docs/originals.md#e6).

The form is checked in the whole text. An answer counts only if the policy wrote it: the environment's hint also
contains the tags.
"""

import re
from collections.abc import Sequence
from functools import partial
from typing import Literal

from s3_agent.rewards import answer_match
from s3_agent.rewards.registry import Reward, Scored
from s3_agent.tags import bodies, cut_after_action
from s3_agent.types import Episode, RewardResult, Task

_TAG = re.compile(r"(</?(?:think|search|information|answer)>)")
# Which tag may follow which, outside and inside of blocks; only white space may be between blocks.
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


def final_answer(*responses: str) -> str | None:
    """The body of the last `<answer>` that is complete in one of the responses; None when there is none."""
    for response in reversed(responses):
        if found := list(bodies(response, "answer")):
            return found[-1].strip()
    return None


def _is_gold(answer: str | None, golds: Sequence[str]) -> bool:
    return answer is not None and answer_match.exact_match(answer, golds)


def exact_match(response: str, golds: Sequence[str]) -> bool:
    """Whether the last `<answer>` of the response is a gold, both normalised."""
    return _is_gold(final_answer(response), golds)


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
    text: str,
    golds: Sequence[str],
    *,
    responses: Sequence[str] | None = None,
    structure: float = 0.2,
    final: float = 0.1,
    retrieval: float = 0.0,
) -> float:
    """Exact match with credit for form (Search-R1 v0.3): 0 to 1. `responses`: what the policy wrote; None: all of
    `text`.

    Right and well formed: 1. Only right: 1 - `structure`. Only well formed: `structure`, plus `retrieval` if an
    information block holds a gold. A wrong answer that is not well formed: `final`. No answer: 0.
    """
    answer = final_answer(*((text,) if responses is None else responses))
    formed = well_formed(text)
    if _is_gold(answer, golds):
        return 1.0 if formed else 1.0 - structure
    if formed:
        return structure + (retrieval if _retrieved(text, golds) else 0.0)
    return 0.0 if answer is None else final


def own_answer(
    task: Task, text: str, *, responses: Sequence[str] | None = None, mode: Literal["exact_match", "format"]
) -> RewardResult:
    """The reward of an agent that gives its own answer; `accuracy` is exact match, as in Search-R1's paper.

    `responses` are what the policy wrote of `text`; None means all of it.
    """
    golds = task.golden_answers
    matched = float(_is_gold(final_answer(*((text,) if responses is None else responses)), golds))
    scored = format_reward(text, golds, responses=responses)
    return RewardResult(
        value=matched if mode == "exact_match" else scored,
        metrics={"accuracy": matched, "exact_match": matched, "format": float(well_formed(text))},
    )


def scored_responses(episode: Episode) -> tuple[str, ...]:
    """What the policy wrote of `scored_text`: its responses, each cut after its action."""
    return tuple(cut_after_action(turn.response) for turn in episode.turns)


def scored_text(episode: Episode) -> str:
    """The text whose form is scored: responses cut after their action, with the observations between them."""
    *before, last = scored_responses(episode)
    read = (response + turn.observation for response, turn in zip(before, episode.turns, strict=False))
    return "".join(read) + last


def _score(scored: Scored, *, mode: Literal["exact_match", "format"]) -> RewardResult:
    episode = scored.episode
    return own_answer(scored.task, scored_text(episode), responses=scored_responses(episode), mode=mode)


EXACT_MATCH = Reward(
    summary="1 if the policy's own answer is a gold, else 0",
    score=partial(_score, mode="exact_match"),
    checks_answer=False,
)
FORMAT = Reward(
    summary="exact match with credit for the form of the whole text: 0 to 1",
    score=partial(_score, mode="format"),
    checks_answer=False,
)
