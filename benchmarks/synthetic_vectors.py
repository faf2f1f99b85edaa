"""Generates any number of synthetic embeddings, and measures how similar to real ones they are.

The generator: every step is a normal draw whose variance falls along the axes by a power law, like the spectra of real
embeddings. A vector is one of `TOPICS` directions, plus the step of one of its `SUBTOPICS` (of unequal size), plus an
individual step whose length varies log-normally, normalised to unit length. A query is a passage's vector plus a step
of the same kind, since a question differs from its passage in meaning, and an isotropic step.

The constants were fitted to MiniLM embeddings (384 dimensions) of 6000 passages of the prose of installed packages.
Queries were fitted to the first sentences of 600 of them, each embedded separately from its passage:

    of 3000 / of 6000 vectors    real            synthetic       synthetic, 768 dimensions
    intrinsic dimension          20.6 / 19.7     21.9 / 20.8     23.2 / 21.1
    contrast                     1.53 / 1.61     1.64 / 1.69     1.61 / 1.67
    near over far                0.77 / 0.75     0.79 / 0.79     0.79 / 0.79
    hubness                      1.9 / 1.6       1.6 / 1.6       1.6 / 1.5
    a query's nearest            0.52 / 0.55     0.56 / 0.56     0.55 / 0.55
    gap                          0.004 / 0.004   0.003 / 0.003   0.003 / 0.003
    margin                       0.13 / 0.13     0.11 / 0.10     0.11 / 0.10

So the synthetic neighbours are slightly harder to distinguish than the real ones.
"""

from typing import Any

import numpy as np

TOPICS, SUBTOPICS = 16, 32
DECAY = 0.6  # exponent of the variance along the axes
SUBTOPIC, OWN, SPREAD, POPULARITY = 0.93, 1.31, 0.46, 0.65
ASKED, OFF = 2.3, 1.7  # the two steps of a query: of the same kind, and isotropic


class Generator:
    """Vectors in chunks; the same seed, dimension, start and count give the same chunk."""

    def __init__(self, *, dimension: int, seed: int = 0) -> None:
        self.dimension, self.seed = dimension, seed
        scale = np.arange(1, dimension + 1, dtype=np.float32) ** np.float32(-DECAY / 2)
        self._scale = scale / np.linalg.norm(scale)
        rng = np.random.default_rng(seed)
        topics = np.repeat(self._steps(rng, TOPICS), SUBTOPICS, axis=0)
        self._subtopics = topics + np.float32(SUBTOPIC) * self._steps(rng, len(topics))
        shares = np.arange(1, len(topics) + 1) ** -POPULARITY
        self._shares = rng.permutation(shares / shares.sum())

    def _steps(self, rng: np.random.Generator, count: int) -> Any:
        return rng.standard_normal((count, self.dimension), dtype=np.float32) * self._scale

    def _unscaled(self, start: int, count: int) -> Any:
        rng = np.random.default_rng((self.seed, start))
        subtopic = rng.choice(len(self._shares), size=count, p=self._shares)
        lengths = OWN * np.exp(np.float32(SPREAD) * rng.standard_normal((count, 1), dtype=np.float32))
        return self._subtopics[subtopic] + lengths * self._steps(rng, count)

    def rows(self, start: int, count: int) -> Any:
        """float32 (count, dimension), unit length."""
        return _unit(self._unscaled(start, count))

    def queries(self, count: int, *, chunk: int) -> Any:
        """Queries for the first passages of `rows(0, chunk)`: float32 (count, dimension), unit length."""
        rng = np.random.default_rng((self.seed, 1 << 40))
        off = np.float32(OFF / self.dimension**0.5) * rng.standard_normal((count, self.dimension), dtype=np.float32)
        return _unit(self._unscaled(0, chunk)[:count] + np.float32(ASKED) * self._steps(rng, count) + off)


def _unit(vectors: Any) -> Any:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def structure(vectors: Any, *, probes: int = 1000, neighbours: int = 20, seed: int = 0) -> dict[str, float]:
    """Neighbourhood structure of unit vectors: a sample against all of them.

    `intrinsic_dimension`: maximum likelihood (Levina and Bickel), mean over probes; `contrast`: mean distance over the
    distance of the nearest, median (near-duplicates would dominate a mean); `near_over_far`: nearest over twentieth;
    `hubness`: skewness of how often a vector is among others' ten nearest (within the sample).
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


def neighbourhood(queries: Any, vectors: Any, *, topk: int = 8) -> dict[str, float]:
    """How hard the queries' nearest are to distinguish, which determines the recall of a compressed index. Medians.

    `nearest`: similarity of the nearest; `gap` between the k-th and the next, `margin` between the k-th and the 100th,
    both over the root mean square distance of a vector from the mean, to which a quantizer's error is proportional.
    """
    similar = np.sort(queries @ vectors.T, axis=1)[:, ::-1]
    reach = float(np.sqrt(vectors.var(axis=0).sum()))
    return {
        "nearest": float(np.median(similar[:, 0])),
        "gap": float(np.median(similar[:, topk - 1] - similar[:, topk])) / reach,
        "margin": float(np.median(similar[:, topk - 1] - similar[:, 99])) / reach,
    }
