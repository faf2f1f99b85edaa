"""Exact search with torch, on a CPU or on a GPU without a GPU build of FAISS.

Vectors take half the memory in fp16, a quarter in int8 (one scale per vector).

A search should cost one pass over the vectors in memory, and little more. So its first stage keeps only the best score
of each block of rows: one matrix product and one maximum per step. The best `k` rows of a query are always in the `k`
blocks with the best scores, so only these blocks are scored again, row by row. A block consists of rows of a step at
equal distances, so that the maximum runs over contiguous memory. A step is small enough that its scores stay in a GPU's
second-level cache, and large enough that its two kernels run longer than it takes to start them.
"""

from itertools import pairwise
from typing import Any

from retrieval_server.backends.base import Hits
from retrieval_server.backends.dense.settings import DenseSettings
from retrieval_server.backends.ordering import HALF, SINGLE, fetch_ties

BLOCK = 16  # rows
_STEP_SCORES = 1 << 23  # 16 MB in fp16; the second-level cache of an A100 has 40 MB, of an H100 50
_STEP_ROWS = 1 << 16, 1 << 20  # minimum and maximum; the minimum if vectors are converted before they are multiplied
_GATHERED_ROWS = 1 << 16  # rows scored again at a time
_ONE_BY_ONE_ROWS = 1 << 13  # the same in float64


def _converted(settings: DenseSettings) -> bool:
    """Whether vectors are multiplied in a different type than they are stored in."""
    return settings.torch_dtype != ("float32" if settings.torch_device == "cpu" else "float16")


def rows_per_step(settings: DenseSettings, queries: int) -> int:
    """The number of rows multiplied at a time: whole blocks."""
    fewest, most = _STEP_ROWS
    rows = settings.chunk or (
        fewest if _converted(settings) else min(max(_STEP_SCORES // max(1, queries), fewest), most)
    )
    return -(-rows // BLOCK) * BLOCK


def search_bytes(settings: DenseSettings, *, queries: int, passages: int, dimension: int) -> int:
    """The maximum of bytes that a search of `queries` queries allocates on a GPU, besides the vectors."""
    step = rows_per_step(settings, queries)
    scores = queries * step * (2 + (4 if settings.torch_dtype == "int8" else 0))
    vectors = step * dimension * 2 if _converted(settings) else 0
    second = 2 * _GATHERED_ROWS * dimension * 2
    return queries * -(-passages // BLOCK) * 4 + max(scores + vectors, second)


class TorchEngine:
    """All vectors on one device, in the settings' type.

    Vectors that already have that type and device are not copied: a memory map on a CPU stays on the disk.
    """

    def __init__(self, vectors: Any, settings: DenseSettings) -> None:
        """`vectors`: (passages, dimension), an array of numpy or a tensor."""
        import torch

        self._settings = settings
        self._device = torch.device(settings.torch_device)
        # bfloat16 and fp16 products are summed in float32 on every relevant device; a CPU has no fast fp16.
        self._compute = torch.float32 if self._device.type == "cpu" else torch.float16
        self._near = SINGLE if self._device.type == "cpu" else HALF
        self._scales: Any = None
        self._vectors = self._kept(vectors)
        self._blocks = -(-len(self._vectors) // BLOCK)

    def _kept(self, vectors: Any) -> Any:
        import torch

        dtype = getattr(torch, self._settings.torch_dtype)
        given = torch.as_tensor(vectors)
        if dtype == given.dtype and self._device.type == given.device.type:
            return given
        kept = torch.empty(given.shape, dtype=dtype, device=self._device)
        if dtype == torch.int8:
            self._scales = torch.empty(len(given), device=self._device)
        for start in range(0, len(given), _STEP_ROWS[0]):
            at = slice(start, start + _STEP_ROWS[0])
            part = given[at].to(self._device)
            if self._scales is not None:
                part = part.float()
                scale = part.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
                self._scales[at] = scale.squeeze(1)
                part = (part / scale).round()
            kept[at] = part
        return kept

    def search(self, queries: Any, *, topk: int) -> list[Hits]:
        """`queries`: float32 (queries, dimension). At most `topk` (row, score) each, best first, ties by row."""
        import numpy as np
        import torch

        if not len(queries):
            return []
        with torch.inference_mode():
            found = [
                rows for rows, _ in fetch_ties(self._best, queries, topk, most=len(self._vectors), near=self._near)
            ]
            rows, query = np.concatenate(found), np.repeat(np.arange(len(found)), [len(part) for part in found])
            scores = self._scores(queries, query, rows)
        order = np.lexsort((rows, -scores, query))
        hits = list(zip(rows[order].tolist(), scores[order].tolist(), strict=True))
        ends = np.cumsum([0, *map(len, found)]).tolist()
        return [hits[start : min(end, start + topk)] for start, end in pairwise(ends)]

    def _best(self, queries: Any, topk: int) -> tuple[Any, Any]:
        """The scores and rows of the best, as numpy arrays; of ties at the end, any of them."""
        import torch

        asked = torch.as_tensor(queries).to(self._device, self._compute)
        step = rows_per_step(self._settings, len(asked))
        blocks = self._block_scores(asked, step).topk(min(topk, self._blocks), dim=1).indices
        rows = self._rows(blocks, step)
        values, at = self._row_scores(asked, rows).topk(topk, dim=1)
        return values.cpu().numpy(), rows.gather(1, at).cpu().numpy()

    def _block_scores(self, asked: Any, step: int) -> Any:
        """(queries, blocks): the best score in each. The last block has the remaining rows."""
        import torch

        best = torch.empty((len(asked), self._blocks), dtype=self._compute, device=self._device)
        for start in range(0, len(self._vectors), step):
            at = slice(start, start + step)
            scores = asked @ self._vectors[at].to(self._compute).T
            if self._scales is not None:
                scores = scores * self._scales[at]
            first, whole = start // BLOCK, scores.shape[1] // BLOCK
            best[:, first : first + whole] = scores[:, : whole * BLOCK].unflatten(1, (BLOCK, whole)).amax(dim=1)
            if whole * BLOCK < scores.shape[1]:
                best[:, -1] = scores[:, whole * BLOCK :].amax(dim=1)
        return best

    def _rows(self, blocks: Any, step: int) -> Any:
        """(queries, blocks * BLOCK): the rows of these blocks, (queries, blocks); some may exceed the last row."""
        import torch

        passages, a_step = len(self._vectors), step // BLOCK
        start = blocks // a_step * step
        whole = (passages - start).clamp(max=step) // BLOCK
        in_step = blocks % a_step
        distance = torch.where(in_step < whole, whole, 1)
        first = torch.where(in_step < whole, start + in_step, start + whole * BLOCK)
        rows = first.unsqueeze(2) + distance.unsqueeze(2) * torch.arange(BLOCK, device=self._device)
        return rows.flatten(1)

    def _row_scores(self, asked: Any, rows: Any) -> Any:
        """float32 (queries, rows): the scores of these rows, (queries, rows); the lowest value for no row."""
        import torch

        wanted = rows.view(-1, BLOCK)
        scores = torch.empty(wanted.shape, device=self._device)
        at_once = _GATHERED_ROWS // BLOCK
        for start in range(0, len(wanted), at_once):
            part = wanted[start : start + at_once]
            there = part.clamp(max=len(self._vectors) - 1)
            query = torch.arange(start, start + len(part), device=self._device) * BLOCK // rows.shape[1]
            products = torch.bmm(self._vectors[there].to(self._compute), asked[query].unsqueeze(2)).squeeze(2).float()
            if self._scales is not None:
                products *= self._scales[there]
            scores[start : start + at_once] = products.masked_fill_(part >= len(self._vectors), float("-inf"))
        return scores.view(rows.shape)

    def _scores(self, queries: Any, query: Any, rows: Any) -> Any:
        """The score of each of `rows` for the query with that number.

        Each is computed separately, so that copies get equal scores, whatever the batch.
        """
        import numpy as np
        import torch

        asked = torch.as_tensor(queries).to(self._device, torch.float64)
        scores = np.empty(len(rows), dtype=np.float32)
        for start in range(0, len(rows), _ONE_BY_ONE_ROWS):
            at = slice(start, start + _ONE_BY_ONE_ROWS)
            local, own = (torch.as_tensor(part[at], device=self._device) for part in (rows, query))
            products = (self._vectors[local].double() * asked[own]).sum(dim=1)
            if self._scales is not None:
                products *= self._scales[local]
            scores[at] = products.float().cpu().numpy()
        return scores
