"""Merges the parts of a corpus into an index, slice by slice of the terms, in bounded memory."""

import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np

from retrieval_server.backends.bm25.block_max import RECORD
from retrieval_server.backends.bm25.block_max.compiling import compiled
from retrieval_server.backends.bm25.block_max.kernel import weight
from retrieval_server.backends.bm25.block_max.packing import BLOCK, pack
from retrieval_server.backends.bm25.block_max.parts import Part
from retrieval_server.backends.bm25.settings import Bm25Settings
from retrieval_server.corpus import Report
from retrieval_server.errors import RetrievalError

# The arrays of an index, one file each: of terms in the order of their hashes (hash, postings, first block), of blocks
# (last row, largest weight, place in the words), the packed postings, and the number of terms of each passage.
ARRAYS = {
    "terms": np.uint64,
    "counts": np.uint32,
    "firsts": np.uint32,
    "lasts": np.uint32,
    "tops": np.float32,
    "places": np.uint32,
    "postings": np.uint32,
    "lengths": np.uint32,
}
_SLICE = 8_000_000  # postings merged at a time, on average; those of one term always are
_MOST_WORDS = 2**32 - 1


def file_of(folder: Path, name: str) -> Path:
    """The file of one of the index's arrays."""
    return folder / f"block_max.{name}"


def idfs(counts: Any, passages: int) -> Any:
    """Lucene's inverse document frequency of terms by the number of passages that have them, in single precision."""
    counts = np.asarray(counts, np.float64)
    return np.log(1 + (passages - counts + 0.5) / (counts + 0.5)).astype(np.float32)


def norms(settings: Bm25Settings, *, longest: int, average: float) -> Any:
    """By the length of a passage in terms, what is added to a frequency in the formula's denominator."""
    lengths = np.arange(longest + 1)
    return settings.k1 * ((1 - settings.b) + settings.b * lengths / average)


def merge(parts: Sequence[Part], settings: Bm25Settings, folder: Path, *, report: Report) -> None:
    """Write the index of the parts into `folder`. Raises RetrievalError if they hold no term."""
    records = [record for part in parts if (record := part.described()) is not None]
    assert len(records) == len(parts), "every part is whole"
    passages, words = (sum(record[name] for record in records) for name in ("passages", "words"))
    if not words:
        raise RetrievalError("the corpus has no word to search for", remedy="give passages with text in `contents`")
    lengths = np.concatenate(
        [part.read("lengths", np.uint32, 0, record["passages"]) for part, record in zip(parts, records, strict=True)]
    )
    norm = norms(settings, longest=int(lengths.max()), average=words / passages)
    slices = -(-sum(record["postings"] for record in records) // _SLICE)
    edges = np.array([(number << 64) // slices for number in range(1, slices)], np.uint64)
    cuts = [_cuts(part, edges) for part in parts]
    blocks = place = 0
    with ExitStack() as stack:
        files = {name: stack.enter_context(file_of(folder, name).open("wb")) for name in ARRAYS if name != "lengths"}
        for number in range(slices):
            report("merging terms", number, slices)
            more_blocks, more_words = _write_slice(
                files.values(), _gathered(parts, records, cuts, number), norm, lengths, blocks, place
            )
            blocks, place = blocks + more_blocks, place + more_words
        files["postings"].write(bytes(4))  # the padding of `packing`
    lengths.tofile(file_of(folder, "lengths"))
    record = {"passages": passages, "words": words, "longest": int(lengths.max())}
    (folder / RECORD).write_text(json.dumps(record), encoding="utf-8")
    report("merging terms", slices, slices)


def _write_slice(
    files: Iterable[IO[bytes]], gathered: tuple[Any, Any, Any, Any], norm: Any, lengths: Any, blocks: int, place: int
) -> tuple[int, int]:
    """Write the terms of a slice behind `blocks` blocks and `place` words; return the numbers of both that it adds."""
    terms, runs, rows, frequencies = gathered
    if not len(terms):
        return 0, 0
    first_runs, starts, sizes = runs
    idf = idfs(np.add.reduceat(sizes, first_runs[:-1]), len(lengths))
    counts, firsts, lasts, tops, places, packed = _encode(
        first_runs, starts, sizes, rows, frequencies, idf, norm, lengths
    )
    if place + len(packed) > _MOST_WORDS:
        raise RetrievalError("the index would be larger than 16 GB", remedy="split the corpus")
    written = (terms, counts, firsts + np.uint32(blocks), lasts, tops, places + np.uint32(place), packed)
    for file, values in zip(files, written, strict=True):
        file.write(values)
    return len(lasts), len(packed)


def _cuts(part: Part, edges: Any) -> list[int]:
    """The place of each slice's first term among the terms of a part, and at the end the number of its terms."""
    terms = np.fromfile(part.file("terms"), np.uint64)
    return [0, *np.searchsorted(terms, edges).tolist(), len(terms)]


def _gathered(
    parts: Sequence[Part], records: Sequence[Any], cuts: Sequence[list[int]], number: int
) -> tuple[Any, Any, Any, Any]:
    """The terms of a slice, and their postings: runs by term, and the rows and frequencies that runs refer to.

    `runs` holds the number of the first run of each term and the number of all, and of each run its start and size.
    """
    terms, sizes, spans = [], [], []
    for part, record, cut in zip(parts, records, cuts, strict=True):
        first, end = cut[number], cut[number + 1]
        if first == end:
            continue
        starts = part.read("starts", np.uint64, first, end + 1).astype(np.int64)
        terms.append(part.read("terms", np.uint64, first, end))
        sizes.append(np.diff(starts))
        spans.append((part, record["frequencies"], int(starts[0]), int(starts[-1])))
    if not terms:
        return np.zeros(0, np.uint64), None, None, None
    of_run, sizes = np.concatenate(terms), np.concatenate(sizes)
    rows, frequencies = np.empty(sizes.sum(), np.uint32), np.empty(sizes.sum(), np.uint32)
    filled = 0
    for part, dtype, start, end in spans:
        here = slice(filled, filled + end - start)
        rows[here] = part.read("rows", np.uint32, start, end)
        frequencies[here] = part.read("frequencies", dtype, start, end)
        filled = here.stop
    starts = np.cumsum(sizes) - sizes
    order = np.argsort(of_run, kind="stable")  # parts stay in order, and so do rows
    different, first_runs = np.unique(of_run[order], return_index=True)
    runs = np.append(first_runs, len(order)), starts[order], sizes[order]
    return different, runs, rows, frequencies


@compiled
def _encode(
    first_runs: Any, starts: Any, sizes: Any, rows: Any, frequencies: Any, idf: Any, norm: Any, lengths: Any
) -> Any:
    """Pack the postings of each term, whose runs are in order; return the arrays of the index, but the hashes."""
    terms = len(first_runs) - 1
    counts, firsts = np.zeros(terms, np.uint32), np.zeros(terms, np.uint32)
    blocks = most = 0
    for term in range(terms):
        count = 0
        for run in range(first_runs[term], first_runs[term + 1]):
            count += sizes[run]
        counts[term], firsts[term] = count, blocks
        blocks += (count + BLOCK - 1) // BLOCK
        most = max(most, count)
    lasts, tops = np.empty(blocks, np.uint32), np.zeros(blocks, np.float32)
    places, words = np.empty(blocks, np.uint32), np.zeros(2 * len(rows) + 3 * blocks + 1, np.uint32)
    own_rows, own_frequencies = np.empty(most, np.uint32), np.empty(most, np.uint32)
    place = 0
    for term in range(terms):
        count = 0
        for run in range(first_runs[term], first_runs[term + 1]):
            for at in range(starts[run], starts[run] + sizes[run]):
                own_rows[count], own_frequencies[count] = rows[at], frequencies[at]
                count += 1
        previous = np.int64(-1)
        for number in range((count + BLOCK - 1) // BLOCK):
            block, start = firsts[term] + number, number * BLOCK
            size = min(BLOCK, count - start)
            places[block] = place
            place = pack(words, place, own_rows, own_frequencies, start, size, previous)
            previous = np.int64(own_rows[start + size - 1])
            lasts[block] = previous
            top = np.float32(0.0)
            for at in range(start, start + size):
                top = max(top, weight(idf[term], own_frequencies[at], norm[lengths[own_rows[at]]]))
            tops[block] = top
    return counts, firsts, lasts, tops, places, words[:place]
