"""The order of hits: by score, best first, and where scores are equal by row. Selection keeps to it too.

Libraries pick any of several passages that score alike at the cut, and a matrix product gives copies of a passage
scores that differ in their last bits, by where they lie in the batch. An engine therefore fetches a few more passages
than are wanted, fetches again where the last fetched one may still be a tie, and scores what it found once more, one by
one.
"""

from collections.abc import Callable
from typing import Any

from retrieval_server.backends.base import Hits

SPARE = 8  # fetched beyond the wanted: enough to see the end of nearly every tie
_GROWTH = 4
# Scores this near to each other, as a share of the largest, are ties until they are computed one by one.
SINGLE, HALF = 4e-6, 2e-3

Fetch = Callable[[Any, int], tuple[Any, Any]]
"""Takes queries and a number; gives scores and rows, (queries, number) each, best first; row -1: no more found."""


def ordered(rows: Any, scores: Any, topk: int) -> Hits:
    """Rows and their scores, 1-D arrays of numpy, in order."""
    import numpy as np

    best = np.lexsort((rows, -scores))[:topk]
    return [(int(rows[at]), float(scores[at])) for at in best]


def fetch_ties(fetch: Fetch, queries: Any, wanted: int, *, most: int, near: float = SINGLE) -> list[tuple[Any, Any]]:
    """For each query the (rows, scores) of its `wanted` best and of all that may tie with the last of them.

    `most` is how many may be fetched at all; among more ties than that, chance decides.
    """
    import numpy as np

    found: dict[int, tuple[Any, Any]] = {}
    left = np.arange(len(queries))
    wanted, fetched = min(wanted, most), min(wanted + SPARE, most)
    while len(left):
        scores, rows = fetch(queries[left], fetched)
        known = rows >= 0
        largest = np.abs(np.where(known, scores, 0)).max(axis=1)
        cut = scores[:, wanted - 1] - near * largest
        undecided = known[:, -1] & (scores[:, -1] >= cut) & (fetched < most)
        for at in np.flatnonzero(~undecided):
            kept = known[at] & (scores[at] >= cut[at])
            found[int(left[at])] = rows[at][kept], scores[at][kept]
        left, fetched = left[undecided], min(_GROWTH * fetched, most)
    return [found[at] for at in range(len(queries))]
