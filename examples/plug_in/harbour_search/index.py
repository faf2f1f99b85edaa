"""The kind of index `words`: passages by how many different words of the query they contain."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from retrieval_server.backends.base import Backend, Hits
from retrieval_server.corpus import Corpus, Report
from retrieval_server.index_kinds import IndexKind, IndexSettings

FILE = "words.json"


class WordsSettings(IndexSettings, frozen=True):
    """Words with fewer letters than `shortest` are left out."""

    kind: Literal["words"] = "words"
    shortest: int = Field(default=4, ge=1)


def words(text: str, shortest: int) -> set[str]:
    cleaned = "".join(letter if letter.isalnum() else " " for letter in text.casefold())
    return {word for word in cleaned.split() if len(word) >= shortest}


class WordsBackend:
    """The opened index: for each word the rows of the passages that contain it."""

    ignores_whitespace: ClassVar[bool] = True

    def __init__(self, rows: dict[str, list[int]], shortest: int) -> None:
        self._rows, self._shortest = rows, shortest

    def search(self, queries: Sequence[str], *, topk: int) -> list[Hits]:
        return [self._search(query, topk) for query in queries]

    def _search(self, query: str, topk: int) -> Hits:
        counts = Counter(row for word in words(query, self._shortest) for row in self._rows.get(word, []))
        best = sorted(counts.items(), key=lambda hit: (-hit[1], hit[0]))[:topk]
        return [(row, float(count)) for row, count in best]

    def cost(self, query: str) -> int:
        return 1


class Words(IndexKind):
    """Passages by how many different words of the query they contain."""

    settings, format, built_at_start = WordsSettings, 1, True

    def build(self, corpus: Corpus, settings: WordsSettings, folder: Path, *, report: Report) -> dict[str, Any]:
        rows: dict[str, list[int]] = {}
        for row, passage in enumerate(corpus):
            for word in sorted(words(passage.contents, settings.shortest)):
                rows.setdefault(word, []).append(row)
        (folder / FILE).write_text(json.dumps(rows), encoding="utf-8")
        return {"words": len(rows)}

    def load(self, corpus: Corpus, folder: Path, settings: WordsSettings, *, report: Report) -> Backend:
        return WordsBackend(json.loads((folder / FILE).read_text(encoding="utf-8")), settings.shortest)


KIND = Words()
