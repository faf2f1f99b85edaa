"""The kind of index `words`: passages by how many different words of the query they contain."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from retrieval_server.backends.base import Backend, Hits
from retrieval_server.corpus import Corpus, Report
from retrieval_server.index_kinds import IndexKind, IndexSettings


class WordsSettings(IndexSettings, frozen=True):
    """Words with fewer letters than `shortest` are left out."""

    kind: Literal["words"] = "words"
    shortest: int = Field(default=4, ge=1)

    def words(self, text: str) -> list[str]:
        letters = "".join(letter if letter.isalnum() else " " for letter in text.casefold())
        return sorted({word for word in letters.split() if len(word) >= self.shortest})


class WordsBackend:
    """The opened index: the words of each passage, by row of the corpus."""

    ignores_whitespace: ClassVar[bool] = True

    def __init__(self, rows: list[list[str]], settings: WordsSettings) -> None:
        self._rows, self._settings = [frozenset(row) for row in rows], settings

    def search(self, queries: Sequence[str], *, topk: int) -> list[Hits]:
        return [self._search(frozenset(self._settings.words(query)), topk) for query in queries]

    def _search(self, asked: frozenset[str], topk: int) -> Hits:
        scored = [(row, float(len(asked & held))) for row, held in enumerate(self._rows)]
        return sorted((hit for hit in scored if hit[1]), key=lambda hit: (-hit[1], hit[0]))[:topk]

    def cost(self, query: str) -> int:
        return 1


class Words(IndexKind):
    """Passages by how many different words of the query they contain."""

    settings, format, built_at_start = WordsSettings, 1, True

    def build(self, corpus: Corpus, settings: WordsSettings, folder: Path, *, report: Report) -> dict[str, Any]:
        rows = [settings.words(passage.contents) for passage in corpus]
        (folder / "words.json").write_text(json.dumps(rows), encoding="utf-8")
        return {"different_words": len({word for row in rows for word in row})}

    def load(self, corpus: Corpus, folder: Path, settings: WordsSettings, *, report: Report) -> Backend:
        return WordsBackend(json.loads((folder / "words.json").read_text(encoding="utf-8")), settings)


KIND = Words()
