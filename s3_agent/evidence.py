"""Finds the documents that a task's answer needs (`Task.evidence`) among passages.

Rewards, evaluation and agents share it, so that all of them mean the same by "found". Passages are compared by
document: several passages of one document count once, at the place of the first. Evidence with an id is compared by id,
other evidence by title: the gold titles of published questions come from another edition of Wikipedia than the corpus.
"""

import unicodedata
from collections.abc import Container, Iterable, Sequence

from s3_agent.types import Evidence, Passage


def plain_title(title: str) -> str:
    """A title as it is compared: NFC, without double quotes (wiki-18 quotes its titles), with single spaces."""
    return " ".join(unicodedata.normalize("NFC", title).replace('"', "").split())


class GoldDocuments:
    """The evidence of one task, and the names of the documents that passages belong to.

    A title that differs from the gold one only in case counts as that one, except for the titles in `exact`: those
    exist in the corpus as they are.
    """

    def __init__(self, evidence: Iterable[Evidence], *, exact: Container[str] = ()) -> None:
        self._by_id: dict[str, str] = {}
        self._by_title: dict[str, str] = {}
        self._folded: dict[str, str] = {}
        names: dict[str, bool] = {}
        self.relevance: dict[str, int] = {}
        """The grade of each document."""
        for one in evidence:
            if one.id:
                name = one.id
                self._by_id |= dict.fromkeys((one.id, *one.pieces), name)
            else:
                name = plain_title(one.title)
                self._by_title[name] = name
                if name not in exact:
                    self._folded.setdefault(name.casefold(), name)
            names[name] = names.get(name, False) or one.answer
            self.relevance[name] = max(one.relevance, self.relevance.get(name, 0))
        self.names = tuple(names)
        """The documents, each once."""
        self.answers = tuple(name for name, answer in names.items() if answer)
        """Those that hold the answer."""

    def document(self, passage: Passage) -> str:
        """The name of the document that a passage belongs to: one of `names`, or any other one."""
        title = plain_title(passage.title) if self._by_title else ""
        gold = self._by_id.get(passage.id) or self._by_title.get(title) or self._folded.get(title.casefold())
        return gold or title or passage.id or f"{passage.title}\n{passage.text}"

    def ranking(self, passages: Iterable[Passage]) -> list[str]:
        """The documents of passages in their order, each at its first place."""
        return list(dict.fromkeys(map(self.document, passages)))


def share_found(wanted: Sequence[str], ranking: Iterable[str]) -> float:
    """The share of the `wanted` documents, which must not be empty, that a ranking holds: its recall."""
    return len({*wanted} & {*ranking}) / len(wanted)
