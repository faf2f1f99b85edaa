"""What of a search's result is shown: whole documents first, then a shortened one, no tag left open (spec §11 B3)."""

import re
from collections.abc import Callable, Sequence

from s3_agent.types import Passage


def fit_passages(
    passages: Sequence[Passage],
    *,
    render: Callable[[Sequence[Passage]], str],
    count: Callable[[str], int],
    max_tokens: int,
) -> tuple[Passage, ...]:
    """The passages as they can be shown in `max_tokens`: the last shown one loses its tail, later ones are left out.

    `render` makes the observation and `count` its length in policy tokens. The tags always close, and ids exist only
    for documents that are shown.
    """

    def fits(shown: Sequence[Passage]) -> bool:
        return count(render(shown)) <= max_tokens

    if fits(passages):
        return tuple(passages)
    # Long runs are parted, since some scripts put no spaces between words.
    words = [re.findall(r"\S{1,16}\s*", passage.text) for passage in passages]

    def first(number: int) -> tuple[Passage, ...]:
        shown: list[Passage] = []
        for passage, parts in zip(passages, words, strict=True):
            if number <= 0:
                break
            shown.append(passage.model_copy(update={"text": "".join(parts[:number]).rstrip()}))
            number -= len(parts)
        return tuple(shown)

    low, high = 0, sum(map(len, words))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(first(middle)) else (low, middle - 1)
    return first(low)
