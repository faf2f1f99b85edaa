"""Makes text from outside safe for its reader: a model, a judge or a terminal.

Questions, passages, answers and what servers say may hold protocol tags, control tokens of a model's tokenizer,
headings of a prompt, or escape sequences. All text of a prompt goes through `neutral` or `without_control`, all text
that is shown goes through `printable`. Text is compared in the form to which tokenizers reduce it: full-width letters,
ligatures, zero-width characters and accents on brackets count as what NFKC makes of them.
"""

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from functools import cache, lru_cache

TAGS = ("question", "information", "query", "important_info", "search_complete", "think", "search", "answer")
"""The names of tags that are broken in every text, whichever methods are loaded: those of s3 and of Search-R1."""

_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_LOOKALIKE = {"<": "\u2039", "[": "\u2045", "(": "\u2768", ":": "\u2236"}

_FLAGS = re.IGNORECASE
_HEADER = re.compile(r"doc\s*[0-9]+\s*(\()\s*title\s*:", _FLAGS)
# The control tokens of common model families, for when the tokenizer itself is not available.
_CONTROL = (
    re.compile(r"(<)\|", _FLAGS),
    re.compile(
        r"(<)/?(?:s|bos|eos|pad|unk|mask|cls|sep|sop|eop|eod|eot|eom|sys|ai|user|assistant|system|human|bot|tools?|"
        r"image|img|video|audio|box|ref|quad|filename|reponame|function)>",
        _FLAGS,
    ),
    re.compile(
        r"(\[)/?(?:inst|sys|args|call|img|prefix|middle|suffix|[gs]?mask|cls|sep|pad|unk|bos|eos|think|audio|"
        r"unused[0-9]+|[a-z0-9]{0,32}_[a-z0-9_]{0,64})\]",
        _FLAGS,
    ),
)
# Headings of the judge's prompts, with any characters between their words.
_HEADING = re.compile(
    r"\b(?:golden[\s*_#.\-]*answers?|response|question|(?:system|correct)[\s*_#.\-]*answer)[\s*_#\]]*(:)", _FLAGS
)
_COLONS = dict.fromkeys("\ufe55\ufe13\ua789\u02d0\u0589\u05c3", ":")


class _Tags:
    """The tags of all protocols that are loaded, as patterns."""

    def __init__(self) -> None:
        self._names: frozenset[str] = frozenset()
        self.add(TAGS)

    def add(self, names: Iterable[str]) -> None:
        self._names |= frozenset(names)
        either = "|".join(sorted(self._names))
        self.tag = re.compile(rf"(<)\s*(?:/\s*)?(?:{either})\b", _FLAGS)
        # A name with `_`, `:` or a digit, except tags and HTML's headings: <start_of_turn>, <seed:bos>, <0x0A>.
        self.named_control = re.compile(
            rf"(<)/?(?!(?:h[1-6]|{either})>)(?=[\w:-]{{0,64}}[a-z])(?=[\w:-]{{0,64}}[_:0-9])[\w:-]{{1,64}}>", _FLAGS
        )


_tags = _Tags()


def protect(tags: Iterable[str]) -> None:
    """From now on, break the tags of these names in every text from outside. Creating a method does this for its tags.

    Raises ValueError for a name that is not a letter followed by letters, digits and underscores.
    """
    tags = tuple(tags)
    if wrong := [name for name in tags if not re.fullmatch(r"[A-Za-z]\w{0,63}", name, re.ASCII)]:
        raise ValueError(f"{wrong} are not names of tags: letters, digits and underscores, a letter first")
    _tags.add(tags)
    neutral.cache_clear()


_PLAIN = re.compile(r"[\t\n\r -~]*")  # every tokenizer reads these as they are
_UNSEEN = frozenset({"Mn", "Me", "Cf", "Cc"})


class _Folded(dict[int, str]):
    """What each character becomes: its compatibility form in lower case; `unseen` for marks and those without width."""

    def __init__(self, unseen: str) -> None:
        super().__init__()
        self._unseen = unseen

    def __missing__(self, code: int) -> str:
        char = chr(code)
        result = self[code] = "".join(map(self._part, unicodedata.normalize("NFKD", _COLONS.get(char, char))))
        return result

    def _part(self, char: str) -> str:
        if char in "\t\n\f\r\u2581":  # SentencePiece writes a space as U+2581
            return " "
        if unicodedata.category(char) in _UNSEEN:
            return self._unseen
        return " " if char.isspace() else char.lower()


# Some normalizers remove zero-width characters, others replace them by a space.
_FOLDINGS = (_Folded(""), _Folded(" "))


def _places(text: str, patterns: Iterable[re.Pattern[str]]) -> set[int]:
    """The positions in `text` of what the patterns capture, in any form to which a tokenizer may reduce the text."""

    def found(read: str) -> set[int]:
        return {match.start(1) for pattern in patterns for match in pattern.finditer(read)}

    places = found(text)
    if not _PLAIN.fullmatch(text):
        for folding in _FOLDINGS:
            if positions := found(text.translate(folding)):
                end = 0
                for index, char in enumerate(text):
                    start, end = end, end + len(folding[ord(char)])
                    if not positions.isdisjoint(range(start, end)):
                        places.add(index)
    return places


def _broken(text: str, patterns: Sequence[re.Pattern[str]]) -> str:
    """`text` with the bracket or colon that each match captures replaced by its look-alike."""
    places = _places(text, patterns)
    if not places:
        return text
    return "".join(_lookalike(char) if index in places else char for index, char in enumerate(text))


def _lookalike(char: str) -> str:
    return next(_LOOKALIKE[mark] for mark in _FOLDINGS[0][ord(char)] if mark in _LOOKALIKE)


@cache
def _patterns(control: frozenset[str]) -> tuple[re.Pattern[str], ...]:
    """The patterns of control tokens: the forms of common model families, and the tokens of a known tokenizer."""
    names = sorted(token.translate(_FOLDINGS[0]) for token in control if token[0] in _LOOKALIKE)
    known = (re.compile(f"({re.escape(name[0])}){re.escape(name[1:])}", _FLAGS) for name in names)
    return (*_CONTROL, *known)


def without_control(text: str, control: frozenset[str] = frozenset(), *, keep: Collection[str] = ()) -> str:
    """`text` in which nothing turns into a control token of a tokenizer.

    `control` holds the tokens of the tokenizer that will read it, if known; the forms of common model families are
    broken in any case. `keep` holds texts of a protocol that only look like such tokens.
    """
    if keep:
        pieces = re.split("(" + "|".join(map(re.escape, keep)) + ")", text)
        return "".join(piece if piece in keep else without_control(piece, control) for piece in pieces)
    text = _broken(text, (*_patterns(control), _tags.named_control))
    while left := [token for token in control if token in text]:  # tokens that do not begin with a bracket
        for token in left:
            text = text.replace(token, f"{token[0]} {token[1:]}" if len(token) > 1 else "\ufffd")
    return text


@lru_cache(maxsize=64)  # passages are rendered again and again while they are cut to a number of tokens
def neutral(text: str, control: frozenset[str] = frozenset()) -> str:
    """`text` without control tokens, protocol tags and document headers: a look-alike replaces their bracket."""
    return without_control(_broken(text, (_tags.tag, _HEADER)), control)


def quoted(text: str, control: frozenset[str] = frozenset()) -> str:
    """`neutral` text that also can not contain the headings of the judge's prompts."""
    return _broken(neutral(text, control), (_HEADING,))


def printable(text: str) -> str:
    """`text` as a terminal may show it: control characters and changes of direction are visible and have no effect."""
    text = text.replace("\r\n", "\n")
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in "\n\t" else _shown(char) for char in text)


def _shown(char: str) -> str:
    code, category = ord(char), unicodedata.category(char)
    if code < 0x20:
        return chr(0x2400 + code)
    if category in ("Cc", "Cs", "Zl", "Zp") or char in _DIRECTIONS:
        return f"\\u{{{code:x}}}"
    return char
