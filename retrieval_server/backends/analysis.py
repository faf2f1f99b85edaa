"""Text to terms as Lucene's EnglishAnalyzer makes them, so that rankings are those of the Lucene indexes (spec §7.3).

StandardTokenizer, EnglishPossessiveFilter, LowerCaseFilter, StopFilter, PorterStemFilter. Words are found by the word
boundaries of Unicode's UAX 29 as far as scripts with spaces need them; an ideograph or a hiragana is a term.
"""

import re
from collections.abc import Sequence
from typing import Any

# The stop words of Lucene's EnglishAnalyzer.
_STOP = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with"
)
STOP_WORDS = frozenset(_STOP.split())
MAX_LENGTH = 255  # StandardTokenizer cuts longer words into pieces
_KATAKANA = r"[\u30a0-\u30ff]"
_IDEOGRAPH = r"[\u3040-\u309f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
_LETTER = rf"(?:(?!{_IDEOGRAPH}|{_KATAKANA})[^\W\d_])"
_MARK = r"[\u0300-\u036f\u00ad\u200d]"
_APOSTROPHES = ("'", "\u2019", "\uff07")
# What joins letters (UAX 29's MidLetter, MidNumLet, single quote) and digits (MidNum, MidNumLet); `_` joins anything.
_JOINS_LETTERS = r"['.\u2019\u00b7:\u2024\ufe52\uff07\uff0e]"
_JOINS_DIGITS = r"[.,;'\u2019\u066c\u2024]"
_WORD = re.compile(
    rf"{_IDEOGRAPH}|{_KATAKANA}+|"
    rf"(?:{_LETTER}|\d|_)"
    rf"(?:{_LETTER}|\d|_|{_MARK}|(?<={_LETTER}){_JOINS_LETTERS}(?={_LETTER})|(?<=\d){_JOINS_DIGITS}(?=\d))*"
)
_ALNUM = re.compile(r"[^\W_]")


class EnglishAnalyzer:
    """Terms of a text. `stemmer` is a name of Snowball's (`porter` is Lucene's), "" for none; likewise `stopwords`."""

    def __init__(self, *, stemmer: str = "porter", stopwords: str = "english") -> None:
        import Stemmer

        if stopwords not in ("english", ""):
            raise ValueError(f"stopwords is {stopwords!r}; it can be 'english' or ''")
        self._stop = STOP_WORDS if stopwords else frozenset()
        self._stem: Any = Stemmer.Stemmer(stemmer) if stemmer else None

    def words(self, text: str) -> list[str]:
        """Lower-case words without stop words, not stemmed."""
        found: list[str] = []
        for word in _WORD.findall(text):
            for start in range(0, len(word), MAX_LENGTH):
                piece = word[start : start + MAX_LENGTH]
                if not _ALNUM.search(piece):
                    continue
                if piece[-1] in "sS" and piece[-2:-1] in _APOSTROPHES:
                    piece = piece[:-2]
                piece = piece.lower()
                if piece and piece not in self._stop:
                    found.append(piece)
        return found

    def terms(self, text: str) -> list[str]:
        """The terms of a text, in its order."""
        words = self.words(text)
        return self._stem.stemWords(words) if self._stem else words

    def batch(self, texts: Sequence[str]) -> list[list[str]]:
        """The terms of each text."""
        return [self.terms(text) for text in texts]
