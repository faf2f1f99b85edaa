"""Orders hits by score, best first, and equal scores by row. The selection of hits follows the same order.

If several passages have equal scores at the cut, libraries return any of them. A matrix product gives copies of a
passage scores that differ in the last bits, depending on their place in the batch. Therefore an engine fetches a few
more passages than wanted, fetches again if the last one may still be a tie, and then scores each found passage
separately.
"""

from collections.abc import Callable
from typing import Any

from retrieval_server.backends.base import Hits

SPARE = 8  # fetched in addition to the wanted ones: enough to reach the end of nearly every tie
_GROWTH = 4
# Scores this close to each other, relative to the largest, count as ties until they are computed separately.
SINGLE, HALF = 4e-6, 2e-3

Fetch = Callable[[Any, int], tuple[Any, Any]]
"""Called with (queries, number); returns scores and rows, (queries, number) each, best first; row -1: none."""


def ordered(rows: Any, scores: Any, topk: int) -> Hits:
    """Rows and their scores, 1-D numpy arrays, in order."""
    import numpy as np

    best = np.lexsort((rows, -scores))[:topk]
    return [(int(rows[at]), float(scores[at])) for at in best]


def fetch_ties(fetch: Fetch, queries: Any, wanted: int, *, most: int, near: float = SINGLE) -> list[tuple[Any, Any]]:
    """For each query the (rows, scores) of its `wanted` best and of all that may tie with the last one.

    `most` is the maximum to fetch; among more ties than that, the choice is arbitrary.
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
