"""Analyses a range of the corpus into a part: its postings in the order of their terms, in files of one folder.

Terms are known by a hash of 64 bits, so that parts, and the index, hold and compare numbers instead of text. (Two terms
of the same hash would be one; among ten million terms the chance is 1 in 370,000.)

`python -m retrieval_server.backends.bm25.block_max.parts` is one of the processes that `workers` starts: it reads its
task as JSON from the first line of its input, then a range a line, and prints for each part a line with its error, or
with an empty text.
"""

import json
import os
import sys
from array import array
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from itertools import batched, count
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_server.backends.bm25.analysis import EnglishAnalyzer, spellings
from retrieval_server.backends.bm25.settings import Bm25Settings
from retrieval_server.corpus import Corpus
from retrieval_server.errors import RetrievalError

# A part's text in bytes. Analysing it takes up to ten times as much memory.
PART_BYTES = 8 << 20
_AT_ONCE = 10_000  # spellings that are analysed at once


def term_hashes(terms: Iterable[str]) -> Any:
    """The numbers by which parts and the index know these terms, uint64."""
    digests = [blake2b(term.encode("utf-8", "surrogatepass"), digest_size=8).digest() for term in terms]
    return np.frombuffer(b"".join(digests), "<u8")


@dataclass(frozen=True)
class Part:
    """The files of one part. `described` holds the numbers of its passages, postings and words, and a dtype."""

    folder: Path
    number: int

    def file(self, name: str) -> Path:
        """`terms`: sorted hashes, uint64. `starts`: the first posting of each and the number of all, uint64. `rows`:
        uint32. `frequencies`: in the described dtype. `lengths`: terms of each passage, uint32."""
        return self.folder / f"part-{self.number:05}.{name}"

    def described(self) -> dict[str, Any] | None:
        """The part's record, which is written last; None for a part that is not whole."""
        try:
            return json.loads(self.file("json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def read(self, name: str, dtype: Any, start: int, end: int) -> Any:
        """The numbers from `start` to `end` of one of its arrays."""
        dtype = np.dtype(dtype)
        return np.fromfile(self.file(name), dtype, count=end - start, offset=start * dtype.itemsize)


def _numbered() -> dict[str, int]:
    """A dictionary that numbers its keys from 0 in the order of their first lookup."""
    return defaultdict(count().__next__)


def _analysed(corpus: Corpus, settings: Bm25Settings, first: int, end: int) -> tuple[list[str], Any, Any]:
    """The different terms of these passages, the terms of all passages as their numbers, and the terms per passage.

    Each spelling is analysed once.
    """
    numbers, read, ends = _numbered(), array("I"), array("Q", [0])
    for row in range(first, end):
        read.extend(map(numbers.__getitem__, spellings(corpus[row].contents)))
        ends.append(len(read))
    analyzer = EnglishAnalyzer(stemmer=settings.stemmer, stopwords=settings.stopwords)
    terms, flat, sizes = _numbered(), array("I"), array("I")
    for some in batched(numbers, _AT_ONCE):
        found, counts = analyzer.terms_of_each(some)
        flat.extend(map(terms.__getitem__, found))
        sizes.extend(counts)
    del numbers
    of_words = np.frombuffer(read, np.uint32)
    of_spellings = np.frombuffer(sizes, np.uint32).astype(np.int64)
    counts = of_spellings[of_words]
    begins = np.cumsum(counts) - counts
    places = np.repeat((np.cumsum(of_spellings) - of_spellings)[of_words] - begins, counts) + np.arange(counts.sum())
    lengths = np.diff(np.append(begins, counts.sum())[np.frombuffer(ends, np.uint64)])
    return list(terms), np.frombuffer(flat, np.uint32)[places], lengths.astype(np.uint32)


def write_part(corpus: Corpus, settings: Bm25Settings, part: Part, first: int, end: int) -> None:
    """Analyse the passages from row `first` to row `end`, and write their part."""
    terms, read, counts = _analysed(corpus, settings, first, end)
    hashes = term_hashes(terms)
    order = np.argsort(hashes)
    rank = np.empty(len(order), np.uint64)
    rank[order] = np.arange(len(order), dtype=np.uint64)
    keys = rank[read] << np.uint64(32)
    keys |= np.repeat(np.arange(first, end, dtype=np.uint64), counts)
    keys.sort()
    begins = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1]))) if len(keys) else np.zeros(0, np.int64)
    frequencies = np.diff(np.append(begins, len(keys)))
    keys = keys[begins]
    starts = np.searchsorted(keys, np.arange(len(order) + 1, dtype=np.uint64) << np.uint64(32))
    dtype = np.min_scalar_type(int(frequencies.max(initial=1)))
    arrays = {
        "terms": hashes[order],
        "starts": starts.astype(np.uint64),
        "rows": keys.astype(np.uint32),  # the lower half
        "frequencies": frequencies.astype(dtype),
        "lengths": counts,
    }
    for name, values in arrays.items():
        _write(part.file(name), values.tobytes())
    record = {"passages": end - first, "postings": len(keys), "words": len(read), "frequencies": dtype.name}
    _write(part.file("json"), json.dumps(record).encode())


def _write(path: Path, content: bytes) -> None:
    """Write a file whole: a process whose parent was killed may write the same part at the same time."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(path)


def main() -> None:
    """Write the parts that the parent process asks for, until it closes the input."""
    task = json.loads(sys.stdin.readline())
    folder = Path(task["folder"])
    corpus = Corpus(Path(task["corpus"]), lines=folder)
    settings = Bm25Settings.model_validate(task["settings"])
    for line in sys.stdin:
        number, first, end = json.loads(line)
        try:
            write_part(corpus, settings, Part(folder, number), first, end)
            answer = ""
        except (RetrievalError, OSError) as error:
            answer = str(error)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
