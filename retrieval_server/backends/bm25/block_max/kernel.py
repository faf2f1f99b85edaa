"""The search over packed postings: exact, with the same scores as adding up every posting, but without reading most.

Rows are divided into windows. The maxima of a term's blocks give, without reading a posting, the most that any row of a
window can score. Windows that can not reach the k-th best score found so far are skipped, the most promising ones are
searched first. In a window, the postings of the terms with the largest maxima are read; the others are looked up only
for rows that can still be among the best (MaxScore). A row's score is the sum in single precision of its terms' weights
in the order of the query, as bm25s adds them, so it does not depend on which postings were read.
"""

from typing import Any

import numpy as np

from retrieval_server.backends.bm25.block_max.compiling import compiled
from retrieval_server.backends.bm25.block_max.packing import BLOCK, frequency, frequency_run, get, unpack_rows

MOST_TERMS = 128
"""The search holds a window for each term of a query; longer queries are searched without pruning."""
# A term with no more postings is read whole, which gives its exact maximum in each window.
_RARE = 8 * BLOCK
# Sums in single precision differ from exact ones by less than this share, at up to MOST_TERMS terms.
_SLACK = 1.0 + 1e-4
_PROMISING = 16  # windows that are searched first, whatever their place


@compiled
def window_bits(passages: Any) -> Any:
    """The power of two that is the number of rows in a window."""
    width = 12
    while width < 16 and passages >> width > 512:
        width += 1
    return width


@compiled
def weight(idf: Any, tf: Any, norm: Any) -> Any:
    """What a term adds to a row's score, rounded as bm25s stores it."""
    return np.float32(np.float64(idf) * (tf / (norm + tf)))


def shares(norms: Any) -> Any:
    """The quotients of `weight` by frequency, up to a small one, and by length."""
    tfs = np.arange(8)[:, None]
    return tfs / (norms + np.maximum(tfs, 1))


@compiled
def scaled(idf: Any, tf: Any, length: Any, norms: Any, known: Any) -> Any:
    """`weight` with the usual quotients from a table."""
    if tf < len(known):
        return np.float32(np.float64(idf) * known[tf, length])
    return weight(idf, tf, norms[length])


@compiled
def postings(index: Any, first: Any, df: Any, idf: Any, rows: Any, weights: Any) -> None:
    """Write all rows of a term and their weights."""
    words, lasts, _, places, lengths, norms, known = index
    for number in range((df + BLOCK - 1) // BLOCK):
        block, start = first + number, number * BLOCK
        count = min(BLOCK, df - start)
        at, previous = np.int64(places[block]), np.int64(lasts[block - 1]) if number else -1
        unpack_rows(words, at, count, previous, np.int64(lasts[block]), rows[start:])
        for posting in range(count):
            tf = frequency(words, at, count, posting)
            weights[start + posting] = scaled(idf, tf, lengths[rows[start + posting]], norms, known)


@compiled
def _worse(scores: Any, rows: Any, one: Any, other: Any) -> Any:
    return scores[one] < scores[other] or (scores[one] == scores[other] and rows[one] > rows[other])


@compiled
def _sink(scores: Any, rows: Any, at: Any, size: Any) -> None:
    while True:
        child = 2 * at + 1
        if child >= size:
            return
        if child + 1 < size and _worse(scores, rows, child + 1, child):
            child += 1
        if not _worse(scores, rows, child, at):
            return
        scores[at], scores[child] = scores[child], scores[at]
        rows[at], rows[child] = rows[child], rows[at]
        at = child


@compiled
def _offer(scores: Any, rows: Any, size: Any, score: Any, row: Any) -> Any:
    """Put a row into the heap of the best, whose root is the worst; return the heap's size."""
    most = len(scores)
    if size < most:
        at = size
        scores[at], rows[at] = score, row
        while at and _worse(scores, rows, at, (at - 1) // 2):
            above = (at - 1) // 2
            scores[at], scores[above] = scores[above], scores[at]
            rows[at], rows[above] = rows[above], rows[at]
            at = above
        return size + 1
    if score > scores[0] or (score == scores[0] and row < rows[0]):
        scores[0], rows[0] = score, row
        _sink(scores, rows, 0, most)
    return size


@compiled
def _find(rows: Any, low: Any, high: Any, row: Any) -> Any:
    """The first place from `low` to `high` that holds at least `row`; `high` if there is none."""
    while low < high:
        middle = (low + high) >> 1
        if rows[middle] < row:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def _find_in_block(rows: Any, row: Any) -> Any:
    """Like `_find` in a block of which some row is at least `row`, without a branch to predict."""
    low, step = 0, BLOCK >> 1
    while step:
        low += step * np.int64(rows[low + step - 1] < row)
        step >>= 1
    return low


@compiled
def _maxima(index: Any, query: Any, shift: Any, maxima: Any, rare: Any) -> None:
    """The most that each term can add to a row of each window; read rare terms into `rare`."""
    _, lasts, tops, _, _, _, _ = index
    firsts, counts, idfs, times, _ = query
    rare_rows, rare_weights, rare_starts = rare
    for term in range(len(firsts)):
        first, df, start = firsts[term], counts[term], rare_starts[term]
        if df <= _RARE:
            postings(index, first, df, idfs[term], rare_rows[start:], rare_weights[start:])
            for at in range(start, start + df):
                window = rare_rows[at] >> shift
                maxima[term, window] = max(maxima[term, window], rare_weights[at] * times[term])
            continue
        window = 0
        for block in range(first, first + (df + BLOCK - 1) // BLOCK):
            last, top = np.int64(lasts[block]) >> shift, tops[block] * times[term]
            while True:
                maxima[term, window] = max(maxima[term, window], top)
                if window >= last:
                    break
                window += 1


@compiled
def search(index: Any, query: Any, passages: Any, scores: Any, rows: Any) -> Any:
    """Fill `scores` and `rows` with the best passages in any order; return their number.

    `index`: words, last row, largest weight and place of each block, lengths by row, norms by length,
    and quotients by frequency and length. `query`: for each
    different term its first block, number of postings, IDF and number of occurrences; and the occurrences as terms.
    """
    words, lasts, tops, places, lengths, norms, known = index
    firsts, counts, idfs, times, occurrences = query
    terms, shift = len(firsts), window_bits(passages)
    width = 1 << shift
    windows = (passages + width - 1) >> shift

    rare_starts = np.zeros(terms + 1, np.int64)
    for term in range(terms):
        rare_starts[term + 1] = rare_starts[term] + (counts[term] if counts[term] <= _RARE else 0)
    rare_rows, rare_weights = np.empty(rare_starts[terms], np.int64), np.empty(rare_starts[terms], np.float32)
    maxima = np.zeros((terms, windows), np.float32)
    _maxima(index, query, shift, maxima, (rare_rows, rare_weights, rare_starts))
    bounds = np.zeros(windows, np.float64)
    for term in range(terms):
        for window in range(windows):
            bounds[window] += maxima[term, window]

    found = 0
    sums = np.zeros(width, np.float64)
    parts = np.zeros((terms, width), np.float32)
    touched = np.empty(width, np.int64)
    order, prefix = np.empty(terms, np.int64), np.zeros(terms + 1, np.float64)
    block_rows, decoded = np.empty((terms, BLOCK), np.int64), np.full(terms, -1, np.int64)
    cursors, added = np.empty(terms, np.int64), np.zeros(terms, np.float32)
    fresh = np.empty(BLOCK, np.int64)

    for turn in range(_PROMISING + windows):
        window = turn - _PROMISING
        if turn < _PROMISING:
            window = np.int64(np.argmax(bounds))
        bound = bounds[window]
        if bound <= 0.0 or (found == len(scores) and bound * _SLACK < scores[0]):
            continue
        bounds[window] = 0.0  # searched
        low, high = window << shift, min((window + 1) << shift, passages)

        # The terms by what they can add here, the least first; `prefix` sums it up.
        for term in range(terms):
            at = term
            while at and maxima[order[at - 1], window] > maxima[term, window]:
                order[at] = order[at - 1]
                at -= 1
            order[at] = term
        looked_up = 0
        for at in range(terms):
            prefix[at + 1] = prefix[at] + maxima[order[at], window]
            if found == len(scores) and prefix[at + 1] * _SLACK < scores[0]:
                looked_up = at + 1

        seen = 0
        for at in range(looked_up, terms):
            term = order[at]
            if maxima[term, window] == 0.0:
                continue
            df, first, count = counts[term], firsts[term], times[term]
            if df <= _RARE:
                start, end = rare_starts[term], rare_starts[term + 1]
                for posting in range(_find(rare_rows, start, end, low), end):
                    row = rare_rows[posting]
                    if row >= high:
                        break
                    place = row - low
                    value = rare_weights[posting]
                    if sums[place] == 0.0 and value > 0.0:
                        touched[seen] = place
                        seen += 1
                    parts[term, place] = value
                    sums[place] += value * count
                continue
            end = first + (df + BLOCK - 1) // BLOCK
            for block in range(_find(lasts, first, end, low), end):
                previous = np.int64(lasts[block - 1]) if block > first else -1
                if previous >= high - 1:
                    break
                size, spot = min(BLOCK, df - (block - first) * BLOCK), np.int64(places[block])
                unpack_rows(words, spot, size, previous, np.int64(lasts[block]), fresh)
                run, bits_each = frequency_run(words, spot, size)
                for posting in range(_find(fresh, 0, size, low), size):
                    row = fresh[posting]
                    if row >= high:
                        break
                    place = row - low
                    tf = get(words, run, bits_each, posting) + 1
                    value = scaled(idfs[term], tf, lengths[row], norms, known)
                    if sums[place] == 0.0 and value > 0.0:
                        touched[seen] = place
                        seen += 1
                    parts[term, place] = value
                    sums[place] += value * count

        if seen == 0:
            continue
        for at in range(looked_up):
            term = order[at]
            end = firsts[term] + (counts[term] + BLOCK - 1) // BLOCK
            cursors[term] = _find(lasts, firsts[term], end, low)
        if looked_up and seen < width >> 3:
            touched[:seen].sort()
        dense = looked_up > 0 and seen >= width >> 3
        for step in range(width if dense else seen):
            place = step if dense else touched[step]
            total = sums[place]
            if total == 0.0:
                continue
            sums[place] = 0.0
            row = low + place
            hopeful = found < len(scores) or (total + prefix[looked_up]) * _SLACK >= scores[0]
            at = looked_up - 1
            while hopeful and at >= 0:
                term = order[at]
                value = np.float32(0.0)
                if counts[term] <= _RARE:
                    end = rare_starts[term + 1]
                    posting = _find(rare_rows, rare_starts[term], end, row)
                    if posting < end and rare_rows[posting] == row:
                        value = rare_weights[posting]
                else:
                    first, df = firsts[term], counts[term]
                    end = first + (df + BLOCK - 1) // BLOCK
                    block = cursors[term]
                    while block < end and lasts[block] < row:
                        block += 1
                    cursors[term] = block
                    if block < end:
                        top = tops[block] * times[term]
                        if (total + top + prefix[at]) * _SLACK < scores[0]:
                            hopeful = False
                            break
                        previous = np.int64(lasts[block - 1]) if block > first else -1
                        if previous < row:
                            size, spot = min(BLOCK, df - (block - first) * BLOCK), np.int64(places[block])
                            if decoded[term] != block:
                                unpack_rows(words, spot, size, previous, np.int64(lasts[block]), block_rows[term])
                                block_rows[term, size:] = passages
                                decoded[term] = block
                            posting = _find_in_block(block_rows[term], row)
                            if block_rows[term, posting] == row:
                                tf = frequency(words, spot, size, posting)
                                value = scaled(idfs[term], tf, lengths[row], norms, known)
                added[term] = value
                total += value * times[term]
                hopeful = (total + prefix[at]) * _SLACK >= scores[0]
                at -= 1
            if hopeful:
                score = np.float32(0.0)
                for term in occurrences:
                    score += parts[term, place] + added[term]
                found = _offer(scores, rows, found, score, row)
            for at in range(looked_up):
                added[order[at]] = np.float32(0.0)
            for at in range(looked_up, terms):
                parts[order[at], place] = np.float32(0.0)
    return found
