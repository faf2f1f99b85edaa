"""The engine block_max: opens the arrays of an index through a memory map, and searches the queries of a batch on all
cores."""

import json
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np

from retrieval_server.backends.base import Hits
from retrieval_server.backends.bm25.block_max import RECORD
from retrieval_server.backends.bm25.block_max.kernel import MOST_TERMS, postings, search, shares
from retrieval_server.backends.bm25.block_max.merging import ARRAYS, file_of, idfs, norms
from retrieval_server.backends.bm25.block_max.parts import term_hash
from retrieval_server.backends.bm25.searching import Bm25Backend
from retrieval_server.backends.bm25.settings import Bm25Settings
from retrieval_server.backends.ordering import ordered


class BlockMax(Bm25Backend):
    """A BM25 index of packed postings with the largest weight of each block."""

    def __init__(self, arrays: dict[str, Any], record: dict[str, int], settings: Bm25Settings) -> None:
        super().__init__(settings, record["passages"])
        self._terms, self._counts, self._firsts = (arrays[name] for name in ("terms", "counts", "firsts"))
        norm = norms(settings, longest=record["longest"], average=record["words"] / record["passages"])
        packed = (arrays[name] for name in ("postings", "lasts", "tops", "places", "lengths"))
        self._index = (*packed, norm, shares(norm))
        self._threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="bm25")

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
        opened._search([], topk=1)  # compiles the search, or reads it from the disk, before the first query
        return opened

    def search(self, queries: Sequence[str], *, topk: int) -> list[Hits]:
        searches = [self._submitted(query, topk) for query in queries]
        return [search.result() for search in searches]

    def _submitted(self, query: str, topk: int) -> Future[Hits]:
        if not self._settings.boolean and len(set(terms := self.terms(query))) <= MOST_TERMS:
            return self._threads.submit(self._search, terms, topk=topk)
        return self._threads.submit(self._add_up, query, topk)

    def _search(self, terms: Sequence[str], *, topk: int) -> Hits:
        places: dict[int, int] = {}
        occurrences = [
            places.setdefault(number, len(places)) for term in terms if (number := self._number(term)) is not None
        ]
        numbers = np.fromiter(places, np.int64, len(places))
        counts = self._counts[numbers].astype(np.int64)
        query = (
            self._firsts[numbers].astype(np.int64),
            counts,
            idfs(counts, self._passages),
            np.bincount(occurrences, minlength=len(places)).astype(np.int64),
            np.array(occurrences, np.int64),
        )
        most = max(1, min(topk, self._passages, int(counts.sum())))
        scores, rows = np.empty(most, np.float32), np.empty(most, np.int64)
        found = search(self._index, query, self._passages, scores, rows)
        return ordered(rows[:found], scores[:found], topk)

    def _number(self, term: str) -> int | None:
        wanted = np.uint64(term_hash(term))
        number = int(np.searchsorted(self._terms, wanted))
        return number if number < len(self._terms) and self._terms[number] == wanted else None

    def _postings(self, term: str) -> tuple[Any, Any]:
        number = self._number(term)
        count = 0 if number is None else int(self._counts[number])
        rows, weights = np.empty(count, np.int64), np.empty(count, np.float32)
        if number is not None:
            idf = idfs([count], self._passages)[0]
            postings(self._index, int(self._firsts[number]), count, idf, rows, weights)
        return rows, weights
