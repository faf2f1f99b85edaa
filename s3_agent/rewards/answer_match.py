"""Does a prediction hold a gold answer? The checks of spec §4.2, on raw strings, without I/O."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import groupby

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _kind(character: str) -> str:
    kind = unicodedata.category(character)[0]
    return "word" if kind in "LNM" else "blank" if kind in "ZC" else "sign"


def _tokens(text: str) -> list[str]:
    """Runs of letters, numbers and marks, or single other visible characters, as Pyserini's SimpleTokenizer does."""
    tokens: list[str] = []
    for kind, run in groupby(unicodedata.normalize("NFD", text).lower(), key=_kind):
        if kind == "word":
            tokens.append("".join(run))
        elif kind == "sign":
            tokens.extend(run)
    return tokens


def span_match(prediction: str, golds: Sequence[str]) -> bool:
    """True if the tokens of some gold stand together in the prediction, both normalised; an empty gold never does."""
    words = _tokens(normalize_answer(prediction))
    for gold in golds:
        span = _tokens(normalize_answer(gold))
        if span and any(words[at : at + len(span)] == span for at in range(len(words) - len(span) + 1)):
            return True
    return False


def exact_match(prediction: str, golds: Sequence[str]) -> bool:
    """True if the whole normalised prediction is a normalised gold. An empty gold never matches."""
    answer = normalize_answer(prediction)
    return bool(answer) and any(answer == normalize_answer(gold) for gold in golds)


def token_f1(prediction: str, golds: Sequence[str]) -> float:
    """The best token F1 over the golds, 0 to 1."""
    words = Counter(normalize_answer(prediction).split())
    best = 0.0
    for gold in golds:
        other = Counter(normalize_answer(gold).split())
        common = (words & other).total()
        if common:
            best = max(best, 2 * common / (words.total() + other.total()))
    return best
