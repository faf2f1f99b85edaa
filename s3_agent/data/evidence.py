"""Reads which documents a question needs, from the fields in which published data sets say so.

| field, in the row or in its `metadata` | data sets | evidence |
|---|---|---|
| `evidence`: objects with `id` or `title`, and `answer`; or ids | ours, a user's own | as it is |
| `supporting_facts`, with `context` | HotpotQA, 2WikiMultihopQA: their releases, the hub's copies, FlashRAG | titles |
| `paragraphs` with `is_supporting` | MuSiQue's release | titles |
| `question_decomposition[].support_paragraph` | MuSiQue in FlashRAG | titles |

Published sets do not say which document holds the answer: `answer` is set here where its text contains a gold answer.
Titles are counted, not facts: HotpotQA has 2.4 facts a question, but two titles.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from retrieval_server.passages import read_id
from s3_agent.data.files.tables import Row
from s3_agent.rewards.answer_match import span_match
from s3_agent.types import Evidence

_BY_CHANCE = frozenset({"yes", "no", "true", "false"})
"""Answers that a text contains by chance."""
Document = tuple[str, str]
"""Title and text."""


def evidence_in(row: Row, golds: Sequence[str]) -> list[Row] | None:
    """The evidence of a question's row, in the form of a task row; None if it says nothing that can be read."""
    if (own := _own(row.get("evidence"))) is not None:
        return own
    metadata = row.get("metadata")
    for fields in (row, metadata if isinstance(metadata, dict) else {}):
        for read in _LAYOUTS:
            if documents := [*read(fields)]:
                return _by_title(documents, golds)
    return None


def evidence_row(evidence: Evidence) -> Row:
    """The evidence as a task row holds it: without the fields that say nothing."""
    return evidence.model_dump(mode="json", exclude_defaults=True)


def _own(value: Any) -> list[Row] | None:
    found: list[Row] = []
    for item in _list(value):
        if isinstance(item, dict):
            try:
                name = read_id(item) or ""
                one = Evidence.model_validate({**{key: item.get(key) for key in _FIELDS}, "id": name})
            except (ValidationError, ValueError):
                return None
        elif isinstance(item, str | int) and not isinstance(item, bool) and len(str(item).split()) == 1:
            one = Evidence(id=str(item))
        else:
            return None
        found.append(evidence_row(one))
    return found or None


_FIELDS = tuple(name for name in Evidence.model_fields if name != "id")


def _by_title(documents: Iterable[Document], golds: Sequence[str]) -> list[Row]:
    texts: dict[str, str] = {}
    for title, text in documents:
        texts[title] = f"{texts.get(title, '')}\n{text}"
    sought = [gold for gold in golds if gold.strip().lower() not in _BY_CHANCE]
    return [
        evidence_row(Evidence(title=title, answer=span_match(f"{title}\n{text}", sought)))
        for title, text in texts.items()
    ]


def _supporting_facts(fields: Row) -> Iterator[Document]:
    context = _pairs(fields.get("context"), ("sentences", "content"))
    texts = {title: " ".join(map(str, _list(text))) for title, text in context}
    for title, _ in _pairs(fields.get("supporting_facts"), ("sent_id",)):
        yield title, texts.get(title, "")


def _paragraphs(fields: Row) -> Iterator[Document]:
    for paragraph in _list(fields.get("paragraphs")):
        if isinstance(paragraph, dict) and paragraph.get("is_supporting") is True:
            yield from _paragraph(paragraph)


def _decomposition(fields: Row) -> Iterator[Document]:
    for step in _list(fields.get("question_decomposition")):
        if isinstance(step, dict):
            yield from _paragraph(step.get("support_paragraph"))


def _paragraph(value: Any) -> Iterator[Document]:
    if isinstance(value, dict) and isinstance(title := value.get("title"), str) and title.strip():
        yield title, str(value.get("paragraph_text") or "")


_LAYOUTS: tuple[Callable[[Row], Iterator[Document]], ...] = (_supporting_facts, _paragraphs, _decomposition)


def _pairs(value: Any, seconds: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Titles, each with what belongs to it: from pairs, or from one object of two lists (the hub's form)."""
    if isinstance(value, dict):
        named = next((name for name in seconds if name in value), None)
        titles, others = _list(value.get("title")), _list(value.get(named)) if named else []
        pairs: Iterable[Any] = zip(titles, [*others, *[None] * len(titles)], strict=False)
    else:
        pairs = _list(value)
    for pair in pairs:
        items = [pair.get("title"), None] if isinstance(pair, dict) else [*pair] if _is_list(pair) else []
        if len(items) == 2 and isinstance(items[0], str) and items[0].strip():
            yield items[0], items[1]


def _is_list(value: Any) -> bool:
    return hasattr(value, "__iter__") and not isinstance(value, str | bytes | dict)


def _list(value: Any) -> list[Any]:
    """A list, also from a NumPy array; empty for anything else."""
    return [*value] if _is_list(value) else []
