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
MOST_OCCURRENCES = 1024
"""The most terms, repeated ones included, whose sum in single precision is exact enough for the pruning."""
# Sums in single precision differ from exact ones by less than this share, at up to MOST_OCCURRENCES terms.
_SLACK = 1.0 + 1e-4
_PROMISING = 16  # windows that are searched first, whatever their place

# A de Bruijn sequence: its products with the 64 powers of two all differ in their highest six bits.
_SEQUENCE = np.uint64(0x03F79D71B4CB0A89)
_PLACES = np.empty(64, np.int64)
for _place in range(64):
    _PLACES[(int(_SEQUENCE) << _place & 0xFFFF_FFFF_FFFF_FFFF) >> 58] = _place


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
def _sort(scores: Any, rows: Any, size: Any) -> None:
    """Bring the heap into order, the best first."""
    for last in range(size - 1, 0, -1):
        scores[0], scores[last] = scores[last], scores[0]
        rows[0], rows[last] = rows[last], rows[0]
        _sink(scores, rows, 0, last)


@compiled
def _lowest(marks: Any) -> Any:
    """The place of the lowest bit that is set."""
    return _PLACES[((marks & (~marks + np.uint64(1))) * _SEQUENCE) >> np.uint64(58)]


@compiled
def _clear(marks: Any, places: Any) -> Any:
    """Set all marks to 0; write the places of those that were set, ascending, and return their number."""
    count = 0
    for word in range(len(marks)):
        left = marks[word]
        marks[word] = np.uint64(0)
        while left:
            places[count] = (word << 6) + _lowest(left)
            count += 1
            left &= left - np.uint64(1)
    return count


@compiled
def _find_in_block(rows: Any, row: Any) -> Any:
    """The first place in a block whose row is at least `row`; the block must hold one. It has no branch to predict."""
    low, step = 0, BLOCK >> 1
    while step:
        low += step * np.int64(rows[low + step - 1] < row)
        step >>= 1
    return low


@compiled
def _unpack(words: Any, at: Any, count: Any, previous: Any, lasts: Any, block: Any, rows: Any, padding: Any) -> Any:
    """Write the rows of a block at word `at`, and `padding` behind those of a short one; return the block."""
    unpack_rows(words, at, count, previous, np.int64(lasts[block]), rows)
    rows[count:] = padding
    return block


@compiled
def _maxima(index: Any, query: Any, shift: Any, maxima: Any, begins: Any, rare: Any) -> None:
    """Fill `maxima` with the most that each term can add to a row of each window, `begins` with the term's first block
    there (of a rare term its first posting), and `rare` with the postings of rare terms.
    """
    _, lasts, tops, _, _, _, _ = index
    firsts, counts, idfs, times, _ = query
    rare_rows, rare_weights, rare_starts = rare
    for term in range(len(firsts)):
        first, df, start = firsts[term], counts[term], rare_starts[term]
        if df <= _RARE:
            postings(index, first, df, idfs[term], rare_rows[start:], rare_weights[start:])
            for at in range(start, start + df):
                window = rare_rows[at] >> shift
                if maxima[term, window] == 0.0:
                    begins[term, window] = at
                maxima[term, window] = max(maxima[term, window], rare_weights[at] * times[term])
            continue
        window = 0
        for block in range(first, first + (df + BLOCK - 1) // BLOCK):
            last, top = np.int64(lasts[block]) >> shift, tops[block] * times[term]
            while True:
                if maxima[term, window] == 0.0:
                    begins[term, window] = block
                maxima[term, window] = max(maxima[term, window], top)
                if window >= last:
                    break
                window += 1


@compiled
def search(index: Any, queries: Any, begin: Any, end: Any, passages: Any, best: Any) -> None:
    """Search the queries from `begin` to `end`.

    `index`: words, last row, largest weight and place of each block, lengths by row, norms by length, and quotients by
    frequency and length. `queries`: for each different term of a query its first block, number of postings and IDF; the
    query's terms, repeated ones included, as numbers of its different terms; and (queries + 1, 2) where the different
    terms and the terms of each query begin. `best` gets the scores and rows of each query's best passages, best first,
    ties by row, and their number.
    """
    firsts, counts, idfs, occurrences, starts = queries
    scores, rows, found = best
    width, most = 1 << window_bits(passages), 0
    for number in range(begin, end):
        most = max(most, starts[number + 1, 0] - starts[number, 0])
    room = (
        np.zeros(width, np.float64),
        np.zeros((most, width), np.float32),
        np.zeros(width >> 6, np.uint64),
        np.empty(width, np.int64),
        np.empty((most, BLOCK), np.int64),
    )
    for number in range(begin, end):
        first, last = starts[number, 0], starts[number + 1, 0]
        own_occurrences = occurrences[starts[number, 1] : starts[number + 1, 1]]
        times = np.zeros(last - first, np.int64)
        for term in own_occurrences:
            times[term] += 1
        query = firsts[first:last], counts[first:last], idfs[first:last], times, own_occurrences
        found[number] = _search_one(index, query, passages, scores[number], rows[number], room)
        _sort(scores[number], rows[number], found[number])


@compiled
def _search_one(index: Any, query: Any, passages: Any, scores: Any, rows: Any, room: Any) -> Any:
    """Fill `scores` and `rows` with the best passages, as a heap; return their number.

    `query`: as in `search`, and the number of occurrences of each different term. `room` holds buffers: for each row of
    a window its sum, what each term adds to it, and a bit if it has a sum (all 0 before and after); a list of such
    rows; and for each term the rows of one block.
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
    maxima, begins = np.zeros((terms, windows), np.float32), np.empty((terms, windows), np.int64)
    _maxima(index, query, shift, maxima, begins, (rare_rows, rare_weights, rare_starts))
    bounds = np.zeros(windows, np.float64)
    for term in range(terms):
        for window in range(windows):
            bounds[window] += maxima[term, window]

    found = 0
    sums, parts, marks, marked, block_rows = room
    order, prefix = np.empty(terms, np.int64), np.zeros(terms + 1, np.float64)
    decoded = np.full(terms, -1, np.int64)
    cursors, added = np.empty(terms, np.int64), np.zeros(terms, np.float32)

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
        looked_up, absent = 0, 0
        for at in range(terms):
            prefix[at + 1] = prefix[at] + maxima[order[at], window]
            if prefix[at + 1] == 0.0:
                absent = looked_up = at + 1
            elif found == len(scores) and prefix[at + 1] * _SLACK < scores[0]:
                looked_up = at + 1

        for at in range(looked_up, terms):
            term = order[at]
            df, first, count = counts[term], firsts[term], times[term]
            if df <= _RARE:
                for posting in range(begins[term, window], rare_starts[term + 1]):
                    row = rare_rows[posting]
                    if row >= high:
                        break
                    place = row - low
                    value = rare_weights[posting]
                    marks[place >> 6] |= np.uint64(1) << np.uint64(place & 63)
                    parts[term, place] = value
                    sums[place] += value * count
                continue
            end = first + (df + BLOCK - 1) // BLOCK
            for block in range(begins[term, window], end):
                previous = np.int64(lasts[block - 1]) if block > first else -1
                if previous >= high - 1:
                    break
                size, spot = min(BLOCK, df - (block - first) * BLOCK), np.int64(places[block])
                if decoded[term] != block:
                    decoded[term] = _unpack(words, spot, size, previous, lasts, block, block_rows[term], passages)
                run, bits_each = frequency_run(words, spot, size)
                for posting in range(_find_in_block(block_rows[term], low), size):
                    row = block_rows[term, posting]
                    if row >= high:
                        break
                    place = row - low
                    tf = get(words, run, bits_each, posting) + 1
                    value = scaled(idfs[term], tf, lengths[row], norms, known)
                    marks[place >> 6] |= np.uint64(1) << np.uint64(place & 63)
                    parts[term, place] = value
                    sums[place] += value * count

        for at in range(absent, looked_up):
            cursors[order[at]] = begins[order[at], window]
        for step in range(_clear(marks, marked)):
            place = marked[step]
            total = sums[place]
            if total == 0.0:
                continue
            sums[place] = 0.0
            row = low + place
            hopeful = found < len(scores) or (total + prefix[looked_up]) * _SLACK >= scores[0]
            at = looked_up - 1
            while hopeful and at >= absent:
                term = order[at]
                value = np.float32(0.0)
                if counts[term] <= _RARE:
                    end, posting = rare_starts[term + 1], cursors[term]
                    while posting < end and rare_rows[posting] < row:
                        posting += 1
                    cursors[term] = posting
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
                                decoded[term] = _unpack(
                                    words, spot, size, previous, lasts, block, block_rows[term], passages
                                )
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
