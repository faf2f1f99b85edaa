"""Text to vectors with any transformers model, told explicitly how: pooling, prefixes, length, device (spec §7.2)."""

from collections.abc import Iterator, Sequence
from typing import Any

from retrieval_server.config import EncoderSettings
from retrieval_server.errors import RetrievalError

_BATCH_TOKENS = 16384


class Encoder:
    """A loaded model. Texts of like length are computed together, so that little is spent on padding."""

    def __init__(self, settings: EncoderSettings) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        self._settings = settings
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(settings.model, trust_remote_code=False)
            model: Any = AutoModel.from_pretrained(
                settings.model, trust_remote_code=False, dtype=getattr(torch, settings.dtype)
            )
            self._model = model.to(settings.device).eval()
        except Exception as cause:  # each library under this has errors of its own
            raise RetrievalError(
                f"the encoder {settings.model} can not be loaded on {settings.device}: {cause}",
                remedy="give `encoder.model` a folder with a transformers model, or a name that this machine can "
                "download, and `encoder.device` a device of this machine",
            ) from cause
        self.dimension = int(model.config.hidden_size)

    def queries(self, texts: Sequence[str]) -> Any:
        """float32 (texts, dimension)."""
        return self._encode([self._settings.query_prefix + text for text in texts])

    def passages(self, texts: Sequence[str]) -> Any:
        """float32 (texts, dimension)."""
        return self._encode([self._settings.passage_prefix + text for text in texts])

    def _encode(self, texts: list[str]) -> Any:
        import numpy as np
        import torch

        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        if not texts:
            return vectors
        encoded = self._tokenizer(texts, truncation=True, max_length=self._settings.max_tokens)["input_ids"]
        with torch.inference_mode():
            for rows in _batches([len(ids) for ids in encoded]):
                padded = self._tokenizer.pad({"input_ids": [encoded[row] for row in rows]}, return_tensors="pt")
                ids = padded["input_ids"].to(self._settings.device)
                mask = padded["attention_mask"].to(self._settings.device)
                hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
                vectors[rows] = self._pooled(hidden.float(), mask).cpu().numpy()
        return vectors

    def _pooled(self, hidden: Any, mask: Any) -> Any:
        import torch

        if self._settings.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            weights = mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        return torch.nn.functional.normalize(pooled, dim=-1) if self._settings.normalize else pooled


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Rows from the longest text to the shortest, so many that padded they hold at most `_BATCH_TOKENS`."""
    rows = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    start = 0
    while start < len(rows):
        size = max(1, _BATCH_TOKENS // max(1, lengths[rows[start]]))
        yield rows[start : start + size]
        start += size
