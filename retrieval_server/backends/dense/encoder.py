"""Converts text to vectors with any transformers model; pooling, prefixes, length and device are explicit settings."""

from collections.abc import Iterator, Sequence
from typing import Any

from retrieval_server.backends.dense.settings import EncoderSettings
from retrieval_server.errors import RetrievalError

BATCH_TOKENS = 16384
# The number of padding tokens that costs as much as one more call of the model. On a CPU a call costs little (32
# measured with `benchmarks/retrieval_encoder.py`'s model and texts); an accelerator computes a few thousand tokens in a
# call's time.
_CPU_PADDING, _ACCELERATOR_PADDING = 32, 4096


class Encoder:
    """A loaded model. Texts of similar length are computed together, so that little time goes into padding."""

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
        except Exception as cause:  # each library underneath raises its own errors
            raise RetrievalError(
                f"the encoder {settings.model} can not be loaded on {settings.device}: {cause}",
                remedy="give `encoder.model` a folder with a transformers model, or a name that this machine can "
                "download, and `encoder.device` a device of this machine",
            ) from cause
        self._padding = _CPU_PADDING if self._model.device.type == "cpu" else _ACCELERATOR_PADDING
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
            for rows in batches([len(ids) for ids in encoded], self._padding):
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


def batches(lengths: Sequence[int], padding: int) -> Iterator[list[int]]:
    """Batches of rows, from the longest text to the shortest. A batch, padded to its longest text, holds at most
    `BATCH_TOKENS` tokens, unless that text alone is longer, and at most `padding` of them are padding.
    """
    batch: list[int] = []
    longest = padded = 0
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        padded += longest - lengths[row]
        if batch and (padded > padding or (len(batch) + 1) * longest > BATCH_TOKENS):
            yield batch
            batch = []
        if not batch:
            longest, padded = lengths[row], 0
        batch.append(row)
    if batch:
        yield batch
