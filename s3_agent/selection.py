"""Selects, from structured turns, the passages that the generator gets.

The original recovers documents from the decoded trajectory; here blocks and marks are fields, so neither a title with a
bracket nor a cut observation can lose a passage or attach a mark to the wrong block (docs/originals.md#b2 and #b3).
"""

from collections.abc import Iterable, Sequence
from typing import Literal

from s3_agent.tags import cut_after_query, marks
from s3_agent.types import Passage, Turn

SelectionRule = Literal["marked-first", "chronological", "mirage", "every"]


def _unique(passages: Iterable[Passage]) -> tuple[Passage, ...]:
    """Each passage once: two are equal by id, or by title and text if one of them has no id (docs/originals.md#b4)."""
    kept: list[Passage] = []
    ids, contents, contents_without_id = set[str](), set[tuple[str, str]](), set[tuple[str, str]]()
    for passage in passages:
        content = (passage.title, passage.text)
        if (passage.id in ids or content in contents_without_id) if passage.id else content in contents:
            continue
        kept.append(passage)
        contents.add(content)
        if passage.id:
            ids.add(passage.id)
        else:
            contents_without_id.add(content)
    return tuple(kept)


def _blocks(
    initial: Sequence[Passage], turns: Sequence[Turn]
) -> list[tuple[tuple[Passage, ...], list[tuple[int, ...]]]]:
    """Each information block with the marks that were written directly after it, in order."""
    blocks: list[tuple[tuple[Passage, ...], list[tuple[int, ...]]]] = [(tuple(initial), [])]
    for turn in turns:
        blocks[-1][1].extend(marks(cut_after_query(turn.response)))
        if turn.passages is not None:
            blocks.append((tuple(turn.passages), []))
    return blocks


def _kept(passages: Sequence[Passage], ids: Sequence[int]) -> list[Passage]:
    return [passage for number, passage in enumerate(passages, 1) if number in ids]


def select_passages(
    initial: Sequence[Passage], turns: Sequence[Turn], *, rule: SelectionRule = "marked-first"
) -> tuple[Passage, ...]:
    """The passages for the generator, in the order in which it reads them; each once, except with `every`.

    Rules: `marked-first`, the published general rule (docs/originals.md#b1): the first mark after a block keeps its
    documents in document order, an empty mark rejects the block, then every unmarked block follows as a whole. `mirage`
    (docs/originals.md#b5): the whole initial block first, then only the marked documents of other blocks; a mark
    belongs to the closest earlier block that is not yet marked. `chronological`: every document of every block in
    order. `every`: the same, each document as often as it was found (docs/originals.md#e3).
    """
    blocks = _blocks(initial, turns)
    if rule == "every" or rule == "chronological":
        found = [passage for passages, _ in blocks for passage in passages]
        return tuple(found) if rule == "every" else _unique(found)
    if rule == "marked-first":
        marked = [passage for passages, found in blocks if found for passage in _kept(passages, found[0])]
        return _unique([*marked, *(passage for passages, found in blocks if not found for passage in passages)])
    if rule == "mirage":
        kept: list[Passage] = list(initial)
        unmarked: list[tuple[Passage, ...]] = []
        for number, (passages, found) in enumerate(blocks):
            if number:
                unmarked.append(passages)
            for ids in found:
                if unmarked:
                    kept += _kept(unmarked.pop(), ids)
        return _unique(kept)
    raise ValueError(f"unknown selection rule {rule!r}; known: marked-first, chronological, mirage, every")
