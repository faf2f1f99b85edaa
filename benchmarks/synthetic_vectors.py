"""Synthetic embeddings of any number, and how like real ones they are.

The generator: topics form a tree. Each of `TOPICS` top directions has `FANOUT` children, each of those `FANOUT` leaves;
a child lies off its parent by a step in a random direction. A vector is a leaf plus a step in the leaf's own
`RANK`-dimensional subspace, whose length varies log-normally, plus a small isotropic step, brought to unit length. Real
embeddings are like that: clustered at several scales, and locally of a much lower dimension than their space. The sizes
of the steps were chosen so that `structure` of 3000 vectors is near that of MiniLM embeddings of 3000 passages of the
prose of installed packages: intrinsic dimension 16.6 (real 14.2), contrast 1.9 (1.8), near over far 0.68 (0.71).
Hubness is not: -0.2 (1.2); real embeddings have hubs, these have none.
"""

from typing import Any

import numpy as np

TOPICS, FANOUT, RANK = 64, 12, 24
CHILD, LEAF, WITHIN, NOISE, SPREAD = 0.75, 0.60, 0.55, 0.20, 0.4
QUERY = 0.25  # the further step of a query


class Generator:
    """Vectors in chunks: the same seed, dimension, start and count give the same chunk."""

    def __init__(self, *, dimension: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.dimension, self.seed = dimension, seed

        def directions(count: int) -> Any:
            steps = rng.standard_normal((count, dimension), dtype=np.float32)
            return steps / np.linalg.norm(steps, axis=1, keepdims=True)

        tops = directions(TOPICS)
        children = np.repeat(tops, FANOUT, axis=0) + CHILD * directions(TOPICS * FANOUT)
        self._leaves = np.repeat(children, FANOUT, axis=0) + LEAF * directions(TOPICS * FANOUT**2)
        self._bases = directions(4096)

    def rows(self, start: int, count: int) -> Any:
        """float32 (count, dimension), unit length."""
        rng = np.random.default_rng((self.seed, start))
        leaf = rng.integers(len(self._leaves), size=count)
        vectors = self._leaves[leaf]
        weights = rng.standard_normal((count, RANK), dtype=np.float32) * (WITHIN / RANK**0.5)
        weights *= np.exp(SPREAD * rng.standard_normal((count, 1), dtype=np.float32))
        for place in range(RANK):  # a leaf's subspace: RANK of the shared directions
            vectors += weights[:, place, None] * self._bases[(leaf * 31 + place * 977) % len(self._bases)]
        vectors += rng.standard_normal(vectors.shape, dtype=np.float32) * np.float32(NOISE / self.dimension**0.5)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def queries(self, count: int, *, passages: int) -> Any:
        """New vectors of the first passages' topics, each with a further step: near those passages, on none of them."""
        rng = np.random.default_rng((self.seed, 1 << 40))
        near = self.rows(0, min(count, passages))
        near = near + QUERY * rng.standard_normal(near.shape, dtype=np.float32) / np.float32(self.dimension**0.5)
        return near / np.linalg.norm(near, axis=1, keepdims=True)


def structure(vectors: Any, *, probes: int = 1000, neighbours: int = 20, seed: int = 0) -> dict[str, float]:
    """Neighbourhood structure of unit vectors, of a sample against all of them.

    `intrinsic_dimension`: maximum likelihood (Levina and Bickel), mean over probes; `contrast`: mean distance over the
    distance of the nearest, median (near-duplicates would rule a mean); `near_over_far`: nearest over twentieth;
    `hubness`: skew of how often a vector is among others' ten nearest (within the sample).
    """
    rng = np.random.default_rng(seed)
    sample = vectors[np.sort(rng.choice(len(vectors), size=min(probes, len(vectors)), replace=False))]
    similar = sample @ vectors.T
    distances = np.sqrt(np.maximum(2 - 2 * similar, 0))
    nearest = np.sort(np.partition(distances, neighbours + 1, axis=1)[:, : neighbours + 1], axis=1)[:, 1:]
    nearest = np.maximum(nearest, 1e-4)
    own = sample @ sample.T
    np.fill_diagonal(own, -2)
    counts = np.bincount(np.argpartition(-own, 10, axis=1)[:, :10].ravel(), minlength=len(sample)).astype(float)
    logs = np.log(nearest[:, -1:] / nearest[:, :-1]).mean(axis=1)
    return {
        "intrinsic_dimension": float(np.mean(1 / np.maximum(logs, 1e-3))),
        "contrast": float(np.median(distances.mean(axis=1) / nearest[:, 0])),
        "near_over_far": float(np.mean(nearest[:, 0] / nearest[:, -1])),
        "hubness": float(((counts - counts.mean()) ** 3).mean() / max(counts.std(), 1e-9) ** 3),
    }
