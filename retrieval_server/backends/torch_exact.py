"""Exact search with torch alone, for a CPU or a GPU without a GPU build of FAISS: half the memory in fp16, a quarter in
int8 (one scale a vector), a chunk of vectors at a time."""

from typing import Any

from retrieval_server.backends.base import Hits
from retrieval_server.backends.ordering import HALF, SINGLE, fetch_ties, ordered
from retrieval_server.config import DenseSettings


class TorchEngine:
    """All vectors on one device, in the settings' type. A memory map in that type on a CPU stays on the disk."""

    def __init__(self, vectors: Any, settings: DenseSettings) -> None:
        import torch

        self._settings = settings
        self._device = torch.device(settings.torch_device)
        # bfloat16 and fp16 products are sums in float32 on every device that is worth using; a CPU has no fast fp16.
        self._compute = torch.float32 if self._device.type == "cpu" else torch.float16
        self._passages = len(vectors)
        self._scales: list[Any] = []
        self._chunks: list[Any] = []
        for start in range(0, len(vectors), settings.chunk):
            self._keep(torch.from_numpy(vectors[start : start + settings.chunk]))

    def _keep(self, chunk: Any) -> None:
        import torch

        if self._settings.torch_dtype == "int8":
            chunk = chunk.float()
            scale = chunk.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
            self._scales.append(scale.squeeze(1).to(self._device))
            chunk = (chunk / scale).round().to(torch.int8)
        else:
            chunk = chunk.to(getattr(torch, self._settings.torch_dtype))
        self._chunks.append(chunk.to(self._device))

    def search(self, queries: Any, *, topk: int) -> list[Hits]:
        """`queries`: float32 (queries, dimension). At most `topk` (row, score) each, best first, ties by row."""
        import torch

        with torch.inference_mode():
            near = SINGLE if self._compute == torch.float32 else HALF
            found = fetch_ties(self._best, queries, topk, most=self._passages, near=near)
            return [
                ordered(rows, self._scores(query, rows), topk) for query, (rows, _) in zip(queries, found, strict=True)
            ]

    def _best(self, queries: Any, topk: int) -> tuple[Any, Any]:
        """The scores and rows of the best, as arrays of numpy; of ties at the end, any."""
        import torch

        asked = torch.as_tensor(queries).to(self._device, self._compute)
        best: tuple[Any, Any] | None = None
        first = 0
        for number, chunk in enumerate(self._chunks):
            scores = (asked @ chunk.to(self._compute).T).float()
            if self._scales:
                scores *= self._scales[number]
            values, rows = scores.topk(min(topk, len(chunk)), dim=1)
            rows += first
            if best is not None:
                values, rows = torch.cat((best[0], values), dim=1), torch.cat((best[1], rows), dim=1)
            values, at = values.topk(min(topk, values.shape[1]), dim=1)
            best, first = (values, rows.gather(1, at)), first + len(chunk)
        assert best is not None, "a corpus has at least one passage"
        return best[0].cpu().numpy(), best[1].cpu().numpy()

    def _scores(self, query: Any, rows: Any) -> Any:
        """The scores of these passages, each computed alone: the same for copies, whatever the batch."""
        import numpy as np
        import torch

        scores = np.empty(len(rows), dtype=np.float32)
        asked = torch.as_tensor(query).to(self._device, torch.float64)
        for number in np.unique(rows // self._settings.chunk):
            here = rows // self._settings.chunk == number
            local = torch.as_tensor(rows[here] - number * self._settings.chunk, device=self._device)
            products = (self._chunks[number][local].double() * asked).sum(dim=1)
            if self._scales:
                products *= self._scales[number][local]
            scores[here] = products.float().cpu().numpy()
        return scores
