"""Text to terms as Lucene's EnglishAnalyzer makes them, so that rankings are those of the Lucene indexes (spec §7.3).

StandardTokenizer, EnglishPossessiveFilter, LowerCaseFilter, StopFilter, PorterStemFilter. Words are found by the word
boundaries of Unicode's UAX 29 as far as scripts with spaces need them; ideographs and kana are one term a character.
"""

import re
from collections.abc import Sequence
from typing import Any

# The stop words of Lucene's EnglishAnalyzer.
STOP_WORDS = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they "
    "this to was will with".split()
)
MAX_LENGTH = 255  # StandardTokenizer cuts longer words into pieces
_IDEOGRAPH = r"[぀-ヿ㐀-䶿一-鿿豈-﫿]"
_LETTER = rf"(?:(?!{_IDEOGRAPH})[^\W\d_])"
_MARK = r"[̀-ͯ­‍]"
# Within a word: letters around . ' ’ · : (MidLetter, MidNumLet), digits around . , ; ' (MidNum, MidNumLet), and `_`.
_WORD = re.compile(
    rf"{_IDEOGRAPH}|"
    rf"(?:{_LETTER}|\d|_)(?:{_LETTER}|\d|_|{_MARK}|(?<={_LETTER})['’.·:․﹒'.](?={_LETTER})|(?<=\d)[.,;'’٬․](?=\d))*"
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
                if piece[-1] in "sS" and piece[-2:-1] in ("'", "’", "'"):
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
