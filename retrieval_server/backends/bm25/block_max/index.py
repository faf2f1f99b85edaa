"""The engine block_max: opens the arrays of an index through a memory map, and searches the queries of a batch on all
cores."""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np

from retrieval_server.backends.base import Hits
from retrieval_server.backends.bm25.block_max import RECORD
from retrieval_server.backends.bm25.block_max.kernel import MOST_OCCURRENCES, MOST_TERMS, postings, search, shares
from retrieval_server.backends.bm25.block_max.merging import ARRAYS, file_of, idfs, norms
from retrieval_server.backends.bm25.block_max.parts import term_hashes
from retrieval_server.backends.bm25.searching import Bm25Backend
from retrieval_server.backends.bm25.settings import Bm25Settings

# Pieces for each core that a batch is split into. More take the interpreter's lock more often, fewer share less evenly.
_PIECES = 4


class BlockMax(Bm25Backend):
    """A BM25 index of packed postings with the largest weight of each block."""

    def __init__(self, arrays: dict[str, Any], record: dict[str, int], settings: Bm25Settings) -> None:
        super().__init__(settings, record["passages"])
        self._terms, self._counts, self._firsts = (arrays[name] for name in ("terms", "counts", "firsts"))
        norm = norms(settings, longest=record["longest"], average=record["words"] / record["passages"])
        packed = (arrays[name] for name in ("postings", "lasts", "tops", "places", "lengths"))
        self._index = (*packed, norm, shares(norm))
        self._cores = len(os.sched_getaffinity(0))
        self._threads = ThreadPoolExecutor(self._cores, thread_name_prefix="bm25")

    @classmethod
    def load(cls, folder: Path, settings: Bm25Settings) -> Self:
        """Open an index. Raises ValueError, OSError or KeyError for a damaged one."""
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        arrays = {
            name: np.frombuffer(np.memmap(file_of(folder, name), dtype, mode="r"), dtype)
            for name, dtype in ARRAYS.items()
        }
        if not len(arrays["lengths"]) == record["passages"] > 0 < len(arrays["terms"]):
            raise ValueError(f"{RECORD} describes other files")
        opened = cls(arrays, record, settings)
        opened._searched([[]], topk=1)  # compiles the search, or reads it from the disk, before the first query
        return opened

    def search(self, queries: Sequence[str], *, topk: int) -> list[Hits]:
        terms = {} if self._settings.boolean else {at: self.terms(query) for at, query in enumerate(queries)}
        pruned = {at: own for at, own in terms.items() if len(set(own)) <= MOST_TERMS and len(own) <= MOST_OCCURRENCES}
        added_up = {
            at: self._threads.submit(self._add_up, query, topk) for at, query in enumerate(queries) if at not in pruned
        }
        found = dict(zip(pruned, self._searched([*pruned.values()], topk), strict=True))
        found |= {at: future.result() for at, future in added_up.items()}
        return [found[at] for at in range(len(queries))]

    def _searched(self, queries: Sequence[Sequence[str]], topk: int) -> list[Hits]:
        """Search queries, given as terms. The pool's threads and the calling one take a piece at a time."""
        asked = self._asked(queries)
        _, counts, _, _, starts = asked
        found_by = np.diff(np.append(0, np.cumsum(counts))[starts[:, 0]])  # postings of each query
        count, most = len(queries), min(topk, self._passages, int(found_by.max(initial=0)))
        best = np.empty((count, most), np.float32), np.empty((count, most), np.int64), np.zeros(count, np.int64)
        size = max(1, count // (_PIECES * self._cores))
        begins = range(0, count, size)
        left = iter(begins)

        def work() -> None:
            for begin in left:
                search(self._index, asked, begin, min(begin + size, count), self._passages, best)

        helping = [self._threads.submit(work) for _ in range(min(self._cores, len(begins)) - 1)]
        try:
            work()
        finally:
            wait(helping)
        for each in helping:
            each.result()
        scores, rows, found = best
        return [
            list(zip(rows[at, :some].tolist(), scores[at, :some].tolist(), strict=True))
            for at, some in enumerate(found.tolist())
        ]

    def _asked(self, queries: Sequence[Sequence[str]]) -> tuple[Any, ...]:
        """The arrays that describe the queries to `kernel.search`."""
        numbers = iter(self._numbers([term for own in queries for term in own]))
        different: list[int] = []
        occurrences: list[int] = []
        starts = [(0, 0)]
        for own in queries:
            places: dict[int, int] = {}
            known = (number for number in islice(numbers, len(own)) if number is not None)
            occurrences += [places.setdefault(number, len(places)) for number in known]
            different += places
            starts.append((len(different), len(occurrences)))
        chosen = np.array(different, np.int64)
        counts = self._counts[chosen].astype(np.int64)
        firsts, idf = self._firsts[chosen].astype(np.int64), idfs(counts, self._passages)
        return firsts, counts, idf, np.array(occurrences, np.int64), np.array(starts, np.int64)

    def _numbers(self, terms: Sequence[str]) -> list[int | None]:
        """The number of each term in the index; None if it has none."""
        hashes = term_hashes(terms)
        numbers = np.searchsorted(self._terms, hashes)
        there = self._terms[np.minimum(numbers, len(self._terms) - 1)] == hashes
        return [number if known else None for number, known in zip(numbers.tolist(), there.tolist(), strict=True)]

    def _postings(self, term: str) -> tuple[Any, Any]:
        [number] = self._numbers([term])
        count = 0 if number is None else int(self._counts[number])
        rows, weights = np.empty(count, np.int64), np.empty(count, np.float32)
        if number is not None:
            idf = idfs([count], self._passages)[0]
            postings(self._index, int(self._firsts[number]), count, idf, rows, weights)
        return rows, weights
