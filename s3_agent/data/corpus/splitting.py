"""Cuts long documents into passages: between sections, paragraphs or sentences, in that order of preference.

It uses semantic-text-splitter (a Rust extension, MIT), because the LangChain splitters depend on langchain-core, which
contains a tracing client. E5 reads 256 tokens, which is about 180 English words.
"""

import re
from typing import Literal

from s3_agent.errors import DataError

DEFAULT_WORDS = 180
# Scripts without spaces between words: one character of Chinese or Japanese counts as a word, and so do five characters
# of South-East Asian alphabets. Any other run without spaces counts as one word for every twenty characters.
_HAN = "\u2e80-\u30ff\u31f0-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
_ASIAN = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
_WORD = re.compile(rf"[{_HAN}]|[{_ASIAN}]{{1,5}}|[^\s{_HAN}{_ASIAN}]{{1,20}}")
_HEADINGS = re.compile(r"\s*(?:#{1,6}[ \t][^\n]*|[^\n]+\n(?:=+|-+)[ \t]*)(?:\n\s*(?:#{1,6}[ \t][^\n]*))*\s*")

_TITLE = re.compile(r"\s*[^\n]{1,80}(?<![.!?:;,\u3002])\s*")


def count_words(text: str) -> int:
    """The number of words of a text, in a script with or without spaces."""
    return sum(1 for _ in _WORD.finditer(text))


class Splitter:
    """Cuts texts of more than `words` words; markdown first at its headings. A heading stays with the text after it."""

    def __init__(self, words: int = DEFAULT_WORDS, *, form: Literal["text", "markdown"] = "text") -> None:
        try:
            from semantic_text_splitter import MarkdownSplitter, TextSplitter
        except ImportError as cause:
            raise DataError(
                "cutting documents needs semantic-text-splitter", remedy="s3-agent setup, or install the extra `data`"
            ) from cause
        self._words = words
        self._make = MarkdownSplitter if form == "markdown" else TextSplitter
        self._heading = _HEADINGS if form == "markdown" else _TITLE

    def pieces(self, text: str) -> list[str]:
        """At least one piece; a text that is short enough stays unchanged."""
        if count_words(text) <= self._words:
            return [text]
        pieces, heading = list[str](), ""
        for piece in self._cut(text, self._words):
            if self._heading.fullmatch(piece) and count_words(heading + piece) <= self._words // 2:
                heading = f"{heading}\n\n{piece}" if heading else piece
                continue
            pieces += self._below(heading, piece) if heading else [piece]
            heading = ""
        return [*pieces, heading] if heading else pieces

    def _below(self, heading: str, piece: str) -> list[str]:
        """The piece with its heading before it, cut again if both together have too many words."""
        first = self._cut(piece, self._words - count_words(heading))[0]
        rest = piece[piece.index(first) + len(first) :]
        return [f"{heading}\n\n{first}", *(self._cut(rest, self._words) if rest.strip() else [])]

    def _cut(self, text: str, words: int) -> list[str]:
        return self._make.from_callback(count_words, words).chunks(text)
