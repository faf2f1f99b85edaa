"""Whether a prediction contains a gold answer: the originals' checks, on raw strings, without I/O.

With the published checks no answer matches a gold that normalises to nothing, such as "A" or "+". Such a gold is
compared by its own words instead, with articles. A gold that is an option with the key A keeps its key, as one with the
key B does. Every other gold is scored as published.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_OPTION_A = re.compile(r"\s*\(?[Aa](?::|\))\s+(?=\S)")
_OTHER_ARTICLES = re.compile(r"\b(an|the)\b|(?<=\ba )a\b")
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


def _bare(text: str) -> str:
    """`text` in lower case without punctuation, but with its articles; with its punctuation if nothing else is left."""
    return " ".join(text.lower().translate(_PUNCTUATION).split()) or " ".join(text.lower().split())


def _keyed(text: str) -> str:
    """`text` normalised, but with "a" kept where it is the key of an option."""
    return " ".join(_OTHER_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _forms(gold: str) -> tuple[list[str], Callable[[str], str]]:
    """The text that a prediction must be or contain to match `gold`, and how the prediction is normalised for that."""
    if (key := _OPTION_A.match(gold)) is not None:
        return [_keyed(gold), f"a {normalize_answer(gold[key.end() :])}".strip()], _keyed
    if normal := normalize_answer(gold):
        return [normal], normalize_answer
    return [bare] if (bare := _bare(gold)) else [], _bare


def can_match(gold: str) -> bool:
    """Whether any answer can match `gold`: none can if it holds no visible character."""
    return any(_tokens(form) for form in _forms(gold)[0])


def _stands_alone(prediction: str, form: str) -> bool:
    """Whether the form of a gold that normalises to nothing is in a prediction as a separate word.

    An article before another word does not count, except a capital A inside of a sentence ("option A is right").
    """
    alone = r"(?<!\w)" + r"[\W_]+".join(map(re.escape, form.split())) + r"(?!\w)"
    if _ARTICLES.fullmatch(form):
        alone += r"(?!\s+\w)"
    if form == "a":
        alone += r"|(?-i:(?<=[\w,;] )A(?!\w))"
    return re.search(alone, prediction, re.IGNORECASE) is not None


def span_match(prediction: str, golds: Sequence[str]) -> bool:
    """True if the tokens of some gold are adjacent in the prediction, both normalised; never for an empty gold."""
    read_as: dict[Callable[[str], str], list[str]] = {}
    for gold in golds:
        forms, read = _forms(gold)
        if read is _bare:
            found = any(_stands_alone(prediction, form) for form in forms)
        else:
            words = read_as.get(read) or read_as.setdefault(read, _tokens(read(prediction)))
            found = any(_holds(words, _tokens(form)) for form in forms)
        if found:
            return True
    return False


def _holds(words: list[str], span: list[str]) -> bool:
    return bool(span) and any(words[at : at + len(span)] == span for at in range(len(words) - len(span) + 1))


def _compared(prediction: str, golds: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The pairs to compare: the prediction and each form of each gold."""
    read_as: dict[Callable[[str], str], str] = {}
    for gold in golds:
        forms, read = _forms(gold)
        for form in forms:
            yield read_as.get(read) or read_as.setdefault(read, read(prediction)), form


def exact_match(prediction: str, golds: Sequence[str]) -> bool:
    """True if the whole prediction is a gold, both normalised. An empty gold never matches."""
    return any(answer == form for answer, form in _compared(prediction, golds))


def token_f1(prediction: str, golds: Sequence[str]) -> float:
    """The best token F1 over the golds, 0 to 1."""
    best = 0.0
    for answer, form in _compared(prediction, golds):
        words, other = Counter(answer.split()), Counter(form.split())
        common = (words & other).total()
        if common:
            best = max(best, 2 * common / (words.total() + other.total()))
    return best
