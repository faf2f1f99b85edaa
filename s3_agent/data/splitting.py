"""Long documents into passages: cut between sections, paragraphs and sentences, in that order of preference.

The cutting is semantic-text-splitter's (a Rust extension of its own, MIT; the LangChain splitters would bring
langchain-core and with it a tracing client). E5 reads 256 tokens, which is about 180 English words.
"""

from typing import Literal

from s3_agent.errors import DataError

DEFAULT_WORDS = 180


def _words(text: str) -> int:
    return len(text.split())


class Splitter:
    """Cuts what has more than `words` words; markdown at its headings first."""

    def __init__(self, words: int = DEFAULT_WORDS, *, form: Literal["text", "markdown"] = "text") -> None:
        try:
            from semantic_text_splitter import MarkdownSplitter, TextSplitter
        except ImportError as cause:
            raise DataError(
                "cutting documents needs semantic-text-splitter", remedy="s3-agent setup, or install the extra `data`"
            ) from cause
        self._words = words
        make = MarkdownSplitter if form == "markdown" else TextSplitter
        self._splitter = make.from_callback(_words, words)

    def pieces(self, text: str) -> list[str]:
        """At least one piece; a text that is short enough is left as it is."""
        if _words(text) <= self._words:
            return [text]
        return self._splitter.chunks(text)
