"""Lucene's BM25 as inner products of sparse vectors: the numbers of terms, and the weights of passages and queries.

A passage's weight of a term is f / (f + k1 (1 - b + b length / average)), a query's is the term's inverse passage
frequency times its number in the query. Their inner product is Lucene's score with exact lengths, for any k1 and b, in
every engine that stores sparse vectors.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

FILE = "vocabulary.json"

Sparse = tuple[list[int], list[float]]
"""Numbers of terms, increasing, and their weights."""


class Vocabulary:
    """Every term of a corpus with its number and the count of passages that have it; the average length in terms."""

    def __init__(self, terms: Sequence[str], frequencies: Sequence[int], passages: int, average: float) -> None:
        self._numbers = {term: number for number, term in enumerate(terms)}
        self._frequencies = frequencies
        self._passages = passages
        self._average = average

    @classmethod
    def of(cls, texts: Iterable[Sequence[str]]) -> Self:
        """The vocabulary of passages, each given by its terms."""
        frequencies: Counter[str] = Counter()
        passages = length = 0
        for terms in texts:
            passages, length = passages + 1, length + len(terms)
            frequencies.update(dict.fromkeys(terms, 1))
        return cls(list(frequencies), list(frequencies.values()), passages, length / max(1, passages))

    def save(self, folder: Path) -> None:
        """Write it into a folder, whole or not at all."""
        described = {
            "passages": self._passages,
            "average": self._average,
            "terms": list(self._numbers),
            "frequencies": list(self._frequencies),
        }
        partial = folder / (FILE + ".partial")
        partial.write_text(json.dumps(described), encoding="utf-8")
        partial.replace(folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The saved one."""
        return cls(**json.loads((folder / FILE).read_text(encoding="utf-8")))

    def __len__(self) -> int:
        return len(self._numbers)

    def passage(self, terms: Sequence[str], *, k1: float, b: float) -> Sparse:
        """The weights of a passage's terms."""
        norm = k1 * (1 - b + b * len(terms) / self._average) if self._average else 0.0
        counted = sorted((self._numbers[term], count) for term, count in Counter(terms).items())
        return [number for number, _ in counted], [count / (count + norm) for _, count in counted]

    def query(self, terms: Counter[str]) -> Sparse:
        """The weights of a query's terms; those that no passage has are left out."""
        known = sorted((self._numbers[term], count) for term, count in terms.items() if term in self._numbers)
        return [number for number, _ in known], [count * self._rarity(number) for number, count in known]

    def _rarity(self, number: int) -> float:
        held = self._frequencies[number]
        return math.log(1 + (self._passages - held + 0.5) / (held + 0.5))
