"""Converts text to terms like Lucene's EnglishAnalyzer, so that rankings equal those of Lucene indexes.

StandardTokenizer, EnglishPossessiveFilter, LowerCaseFilter, StopFilter, PorterStemFilter. Words are found by the word
boundaries of Unicode's UAX 29 as far as scripts with spaces need them; an ideograph or a hiragana is a term.
"""

import re
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

# The stop words of Lucene's EnglishAnalyzer.
_STOP = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with"
)
STOP_WORDS = frozenset(_STOP.split())
# Tested word by word to equal Lucene's, and equal from PyStemmer 2.2 to 3.1: an index need not be built again.
FIXED_STEMMER = "porter"
MAX_LENGTH = 255  # StandardTokenizer cuts longer words into pieces
_KATAKANA = r"[\u30a0-\u30ff]"
_IDEOGRAPH = r"[\u3040-\u309f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
_LETTER = rf"(?:(?!{_IDEOGRAPH}|{_KATAKANA})[^\W\d_])"
_MARK = r"[\u0300-\u036f\u00ad\u200d]"
_APOSTROPHES = ("'", "\u2019", "\uff07")
# Characters that join letters (UAX 29's MidLetter, MidNumLet, single quote) and digits (MidNum, MidNumLet); `_` joins
# both.
_JOINS_LETTERS = r"['.\u2019\u00b7:\u2024\ufe52\uff07\uff0e]"
_JOINS_DIGITS = r"[.,;'\u2019\u066c\u2024]"
_WORD = re.compile(
    rf"{_IDEOGRAPH}|{_KATAKANA}+|"
    rf"(?:{_LETTER}|\d|_)"
    rf"(?:{_LETTER}|\d|_|{_MARK}|(?<={_LETTER}){_JOINS_LETTERS}(?={_LETTER})|(?<=\d){_JOINS_DIGITS}(?=\d))*"
)
# The same words in a text of ASCII characters, found three times as fast.
_ASCII_WORD = re.compile(r"[A-Za-z0-9_]+(?:(?:(?<=[A-Za-z])['.:](?=[A-Za-z])|(?<=[0-9])[.,;'](?=[0-9]))[A-Za-z0-9_]+)*")
_ALNUM = re.compile(r"[^\W_]")
# Words whose double consonant Lucene's Porter makes single and Snowball's does not ("trekking"). Two UTF-16 units of
# one character are not a double consonant.
_DOUBLED = re.compile(r"(.*([^aeioulszbdfgmnprt\U00010000-\U0010ffff]))\2(?:ed|ing)s?", re.DOTALL)
# Words that Porter's first two steps leave with the ending -logi or -bli: Lucene's changes it to -log or -ble.
_LOGI_OR_BLI = re.compile(r"(.*)(log|bl)(?:ies|[iy](?:ed|ing)?s?)", re.DOTALL)


def stemmer_release(stemmer: str) -> str:
    """The stemming library with its release; "" for no stemmer."""
    return f"PyStemmer {version('PyStemmer')}" if stemmer else ""


def stemmer_identity(stemmer: str) -> dict[str, str]:
    """What an index depends on besides the stemmer's name: its release, if its terms change between releases."""
    return {} if stemmer in ("", FIXED_STEMMER) else {"stemmer": stemmer_release(stemmer)}


def _consonants(word: str) -> list[bool]:
    """For each letter, whether it is a consonant in Porter's sense: `y` is one at the start and after a vowel."""
    found: list[bool] = []
    for letter in word:
        found.append(letter not in "aeiou" and (letter != "y" or not found or not found[-1]))
    return found


def _measured(stem: str) -> bool:
    """Whether a consonant comes after a vowel: Porter's condition m > 0."""
    found = _consonants(stem)
    return False in found and any(found[found.index(False) :])


def _like_lucene(word: str) -> str:
    """A word whose Snowball `porter` stem is the Lucene stem of the given one."""
    if word.endswith(("ed", "ing", "eds", "ings")) and (found := _DOUBLED.fullmatch(word)):
        consonants = _consonants(found[1] + found[2])
        if consonants[-1] and not all(consonants):
            word = found[1]
    if ("log" in word or "bl" in word) and (found := _LOGI_OR_BLI.fullmatch(word)) and _measured(found[1]):
        return found[1] + ("log" if found[2] == "log" else "ble")
    return word


def _units(word: str) -> int:
    """Java's length of a word: its UTF-16 units."""
    return len(word) + sum(letter > "\uffff" for letter in word)


class LucenePorter:
    """Snowball's `porter` with the additional rules of Lucene's PorterStemFilter.

    -logi becomes -log and -bli becomes -ble before the later steps, so that "psychology" finds "psychological"; any
    double consonant except l, s and z becomes single before -ed and -ing; words of one or two characters stay ("us").
    """

    def __init__(self) -> None:
        import Stemmer

        self._stem: Any = Stemmer.Stemmer("porter")

    def stemWords(self, words: Sequence[str]) -> list[str]:
        """The term of each word; the name is Snowball's."""
        stems = self._stem.stemWords([_like_lucene(word) for word in words])
        return [stem if len(word) > 2 or _units(word) > 2 else word for word, stem in zip(words, stems, strict=True)]


def spellings(text: str) -> list[str]:
    """The words of a text as they are written, in order."""
    return (_ASCII_WORD if text.isascii() else _WORD).findall(text)


class EnglishAnalyzer:
    """Terms of a text. `stemmer` is `porter` (Lucene's), another of Snowball's names, or "" for none; `stopwords` is
    `english` or "".
    """

    def __init__(self, *, stemmer: str = "porter", stopwords: str = "english") -> None:
        import Stemmer

        if stopwords not in ("english", ""):
            raise ValueError(f"stopwords is {stopwords!r}; it can be 'english' or ''")
        self._stop = STOP_WORDS if stopwords else frozenset()
        self._stem: Any = LucenePorter() if stemmer == "porter" else Stemmer.Stemmer(stemmer) if stemmer else None

    def _words_of(self, spelling: str) -> list[str]:
        """Its lower-case words without stop words, not stemmed."""
        if spelling.isalnum() and len(spelling) <= MAX_LENGTH:  # the usual case: there is nothing to cut
            word = spelling.lower()
            return [] if word in self._stop else [word]
        found: list[str] = []
        for start in range(0, len(spelling), MAX_LENGTH):
            piece = spelling[start : start + MAX_LENGTH]
            if not _ALNUM.search(piece):
                continue
            if piece[-1] in "sS" and piece[-2:-1] in _APOSTROPHES:
                piece = piece[:-2]
            piece = piece.lower()
            if piece and piece not in self._stop:
                found.append(piece)
        return found

    def terms_of_each(self, spellings: Iterable[str]) -> tuple[list[str], list[int]]:
        """The terms of a text's `spellings`, in order, and how many come from each spelling."""
        words: list[str] = []
        counts: list[int] = []
        for spelling in spellings:
            found = self._words_of(spelling)
            words += found
            counts.append(len(found))
        return (self._stem.stemWords(words) if self._stem else words), counts

    def terms(self, text: str) -> list[str]:
        """The terms of a text, in order."""
        return self.terms_of_each(spellings(text))[0]

    def batch(self, texts: Sequence[str]) -> list[list[str]]:
        """The terms of each text."""
        return [self.terms(text) for text in texts]
