"""Parses Boolean queries, if the settings enable them: AND, OR, NOT, parentheses, and quotes that need every word.

In Lucene's bag-of-words search these operators have no effect, and by default neither have they here. Words next to
each other are alternatives, as in the bag of words. The index keeps no positions: a quoted phrase needs all its words,
in any order. Invalid syntax, like an open parenthesis, is read as far as possible; only nesting deeper than DEEPEST is
refused.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

from retrieval_server.errors import QueryError

DEEPEST = 50
_TOKEN = re.compile(r'"([^"]*)"|([()])|([^\s()"]+)')
Analyse = Callable[[str], list[str]]


@dataclass(frozen=True)
class Clause:
    """A term, or a group of clauses: all of them, any of them, or none of them must match."""

    kind: Literal["term", "all", "any", "none"]
    term: str = ""
    parts: tuple["Clause", ...] = ()

    def positive(self) -> Iterator[str]:
        """The terms that add to the score, as often as they occur."""
        if self.kind == "term":
            yield self.term
        elif self.kind != "none":
            for part in self.parts:
                yield from part.positive()

    def matches(self, mask: Callable[[str], Any]) -> Any:
        """The rows that match, a boolean array like those that `mask` gives for a term."""
        if self.kind == "term":
            return mask(self.term)
        parts = (part.matches(mask) for part in self.parts)  # one at a time, since each is as long as the corpus
        if self.kind == "all":
            return reduce(lambda left, right: left & right, parts)
        either = reduce(lambda left, right: left | right, parts)
        return ~either if self.kind == "none" else either


def _group(kind: Literal["all", "any"], parts: Sequence[Clause | None]) -> Clause | None:
    """Parts that are None are stop words: they neither require nor exclude anything."""
    found = tuple(part for part in parts if part is not None)
    return found[0] if len(found) == 1 else Clause(kind, parts=found) if found else None


class _Parser:
    def __init__(self, query: str, analyse: Analyse) -> None:
        self._tokens = [match.groups() for match in _TOKEN.finditer(query)]
        self._analyse = analyse
        self._at = 0
        self._depth = 0

    def _sees(self, word: str) -> bool:
        if self._at < len(self._tokens):
            _, sign, plain = self._tokens[self._at]
            return word in (sign, plain)
        return False

    def _takes(self, word: str) -> bool:
        seen = self._sees(word)
        self._at += seen
        return seen

    def whole(self) -> Clause | None:
        parts: list[Clause | None] = []
        while self._at < len(self._tokens):
            parts.append(self.alternatives())
            self._takes(")")  # a parenthesis without an opening one
        return _group("any", parts)

    def alternatives(self) -> Clause | None:
        parts = [self.needed()]
        while self._at < len(self._tokens) and not self._sees(")"):
            self._takes("OR")
            parts.append(self.needed())
        return _group("any", parts)

    def needed(self) -> Clause | None:
        parts = [self.operand()]
        while self._takes("AND") or self._sees("NOT"):
            parts.append(self.operand())
        return _group("all", parts)

    def operand(self) -> Clause | None:
        if self._sees("NOT") or self._sees("("):
            return self._nested()
        if self._at >= len(self._tokens) or self._sees(")") or self._takes("OR") or self._takes("AND"):
            return None
        quoted, _, plain = self._tokens[self._at]
        self._at += 1
        terms = [Clause("term", term) for term in self._analyse(quoted if quoted is not None else plain)]
        return _group("all" if quoted is not None else "any", terms)

    def _nested(self) -> Clause | None:
        self._depth += 1
        if self._depth > DEEPEST:
            raise QueryError(f"parentheses and NOT are nested deeper than {DEEPEST}")
        if self._takes("NOT"):
            part = self.operand()
            found = None if part is None else Clause("none", parts=(part,))
        else:
            self._takes("(")
            found = self.alternatives() if not self._sees(")") else None
            self._takes(")")
        self._depth -= 1
        return found


def parse(query: str, analyse: Analyse) -> Clause:
    """The query's clause; without any term it matches nothing. `a NOT b` is `a AND NOT b`.

    Raises QueryError for one that is nested too deeply.
    """
    return _Parser(query, analyse).whole() or Clause("term", "")
