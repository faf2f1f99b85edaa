"""Passages cut to a number of tokens: whole documents first, then a shortened one (docs/originals.md#b3 and #c6)."""

import re
from collections.abc import Callable, Sequence

from s3_agent.types import Passage

SLACK_TOKENS = 8


def fit_passages(
    passages: Sequence[Passage],
    *,
    render: Callable[[Sequence[Passage]], str],
    count: Callable[[str], int],
    max_tokens: int,
) -> tuple[Passage, ...]:
    """The passages that fit in `max_tokens`: the last shown one is cut at its end, later ones are left out.

    `render` makes the observation and `count` its length in policy tokens. The tags are always closed, and only
    documents that are shown have ids. Up to `SLACK_TOKENS` stay unused, since another count would cost more than a
    further word is worth.
    """

    def tokens(shown: Sequence[Passage]) -> int:
        return count(render(shown))

    least, most = 0, tokens(passages)
    if most <= max_tokens:
        return tuple(passages)
    # Split long runs, since some scripts put no spaces between words.
    words = [re.findall(r"\S{1,16}\s*", passage.text) for passage in passages]

    def first(number: int) -> tuple[Passage, ...]:
        shown: list[Passage] = []
        for passage, parts in zip(passages, words, strict=True):
            if number <= 0:
                break
            cut = {"text": "".join(parts[:number]).rstrip()}
            shown.append(passage if number >= len(parts) else passage.model_copy(update=cut))
            number -= len(parts)
        return tuple(shown)

    # Tokens grow with words, so interpolate between the known counts; every second guess halves the range instead.
    low, high, halving = 0, sum(map(len, words)) + 1, False
    while high - low > 1 and least < max_tokens - SLACK_TOKENS:
        share = 0.5 if halving else (max_tokens - least) / max(1, most - least)
        middle = min(high - 1, max(low + 1, low + int((high - low) * share)))
        size, halving = tokens(first(middle)), not halving
        if size <= max_tokens:
            low, least = middle, size
        else:
            high, most = middle, size
    return first(low)
