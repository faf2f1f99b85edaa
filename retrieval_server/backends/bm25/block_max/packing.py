"""Packs the postings of a term into blocks of 128, with as many bits per number as the block's largest needs.

A block is a header word and two runs of packed numbers: the distances between its rows, less one (the last row is not
packed: the index has it for every block), and the frequencies, less one. The header holds both widths in bits. Runs
start at a word of 32 bits, and the words end with one of padding, so that a number can be read as two words.
"""

from typing import Any

import numpy as np

from retrieval_server.backends.bm25.block_max.compiling import compiled

BLOCK = 128


@compiled
def bits(number: Any) -> Any:
    """The number of bits that a non-negative number needs; 0 for 0."""
    width = 0
    while number:
        number >>= 1
        width += 1
    return width


@compiled
def words_for(width: Any, count: Any) -> Any:
    """The number of words that `count` numbers of `width` bits take."""
    return (width * count + 31) >> 5


@compiled
def put(words: Any, at: Any, width: Any, index: Any, number: Any) -> None:
    """Write the number `index` of the run at word `at`; its bits must be 0 before."""
    place = index * width
    word = at + (place >> 5)
    shifted = np.uint64(number) << np.uint64(place & 31)
    words[word] |= np.uint32(shifted & np.uint64(0xFFFFFFFF))
    rest = np.uint32(shifted >> np.uint64(32))
    if rest:
        words[word + 1] |= rest


@compiled
def get(words: Any, at: Any, width: Any, index: Any) -> Any:
    """The number `index` of the run at word `at`."""
    place = index * width
    word = at + (place >> 5)
    both = np.uint64(words[word]) | (np.uint64(words[word + 1]) << np.uint64(32))
    return np.int64((both >> np.uint64(place & 31)) & ((np.uint64(1) << np.uint64(width)) - np.uint64(1)))


@compiled
def pack(words: Any, at: Any, rows: Any, frequencies: Any, start: Any, count: Any, previous: Any) -> Any:
    """Write postings `start` to `start + count` as a block at word `at`; return the word behind it.

    `previous` is the last row of the block before, -1 for the first block. The words must be 0 before.
    """
    widest, most, last = 0, 0, previous
    for index in range(start, start + count):
        if index < start + count - 1:
            widest = max(widest, np.int64(rows[index]) - last - 1)
            last = np.int64(rows[index])
        most = max(most, np.int64(frequencies[index]) - 1)
    row_bits, frequency_bits = bits(widest), bits(most)
    words[at] = np.uint32(row_bits | frequency_bits << 8)
    at += 1
    last = previous
    if row_bits:
        for index in range(count - 1):
            row = np.int64(rows[start + index])
            put(words, at, row_bits, index, row - last - 1)
            last = row
    at += words_for(row_bits, count - 1)
    if frequency_bits:
        for index in range(count):
            put(words, at, frequency_bits, index, np.int64(frequencies[start + index]) - 1)
    return at + words_for(frequency_bits, count)


@compiled
def unpack_rows(words: Any, at: Any, count: Any, previous: Any, last: Any, rows: Any) -> None:
    """Write the rows of the block at word `at` into `rows`."""
    width = np.int64(words[at] & np.uint32(0xFF))
    at += 1
    row = previous
    if width:
        mask = (np.uint64(1) << np.uint64(width)) - np.uint64(1)
        for index in range(count - 1):  # no number depends on another: several are read at once
            place = index * width
            word = at + (place >> 5)
            both = np.uint64(words[word]) | (np.uint64(words[word + 1]) << np.uint64(32))
            rows[index] = np.int64((both >> np.uint64(place & 31)) & mask)
        for index in range(count - 1):
            row += rows[index] + 1
            rows[index] = row
    else:
        for index in range(count - 1):
            row += 1
            rows[index] = row
    rows[count - 1] = last


@compiled
def frequency_run(words: Any, at: Any, count: Any) -> Any:
    """Where the frequencies of the block at word `at` begin, and their width."""
    header = np.int64(words[at])
    return at + 1 + words_for(header & 0xFF, count - 1), header >> 8


@compiled
def frequency(words: Any, at: Any, count: Any, index: Any) -> Any:
    """The frequency of posting `index` of the block at word `at`, which has `count` postings."""
    start, width = frequency_run(words, at, count)
    return get(words, start, width, index) + 1
