"""A candidate for the first stage of exact search on a GPU: the vectors are read once and no product is ever written.

The engine's own first stage writes the products of a step and reads them again for the maxima, and int8 vectors are
written in fp16 before they are multiplied. This kernel, in Triton, multiplies a block of rows where it was read to, and
writes the best score of each query. It is measured beside the engine and is not part of it: it goes there when a card
has shown that it is right and that the engine alone misses its target (docs/gpu.md).
"""

from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

ROWS = 128  # of a block: one program multiplies them by all queries
MOST_QUERIES = 64
_STRIPE = 64  # numbers of a vector at a time


@triton.jit
def _block_best(
    asked,
    vectors,
    scales,
    best,
    passages,
    blocks,
    queries,
    dimension: tl.constexpr,
    scaled: tl.constexpr,
    rows_at_once: tl.constexpr,
    queries_at_once: tl.constexpr,
    stripe: tl.constexpr,
):
    block = tl.program_id(0)
    rows = block.to(tl.int64) * rows_at_once + tl.arange(0, rows_at_once)
    there = rows < passages
    query = tl.arange(0, queries_at_once)
    scores = tl.zeros((rows_at_once, queries_at_once), dtype=tl.float32)
    for start in range(0, dimension, stripe):
        places = start + tl.arange(0, stripe)
        part = tl.load(vectors + rows[:, None] * dimension + places[None, :], mask=there[:, None], other=0)
        wanted = tl.load(asked + query[None, :] * dimension + places[:, None], mask=query[None, :] < queries, other=0)
        scores = tl.dot(part.to(wanted.dtype), wanted, scores)
    if scaled:
        scores *= tl.load(scales + rows, mask=there, other=0)[:, None]
    scores = tl.where(there[:, None], scores, float("-inf"))
    tl.store(best + query.to(tl.int64) * blocks + block, tl.max(scores, axis=0), mask=query < queries)


def block_best(asked: Any, vectors: Any, scales: Any = None) -> Any:
    """float32 (queries, blocks): the best score in each block of ROWS neighbouring rows.

    `asked`: (queries, dimension), 64 at most; `vectors`: (passages, dimension) in the same type, or in int8 with
    `scales`, float32 (passages). The dimension is a multiple of 64.
    """
    passages, dimension = vectors.shape
    queries, blocks = len(asked), -(-passages // ROWS)
    assert queries <= MOST_QUERIES and dimension % _STRIPE == 0 and asked.is_contiguous() and vectors.is_contiguous()
    best = torch.empty(queries, blocks, dtype=torch.float32, device=vectors.device)
    _block_best[(blocks,)](  # pyright: ignore[reportIndexIssue]
        asked,
        vectors,
        vectors if scales is None else scales,
        best,
        passages,
        blocks,
        queries,
        dimension=dimension,
        scaled=scales is not None,
        rows_at_once=ROWS,
        queries_at_once=max(16, triton.next_power_of_2(queries)),
        stripe=_STRIPE,
        num_warps=4,
        num_stages=4,
    )
    return best
