"""Converts text to vectors with any transformers model; pooling, prefixes, length and device are explicit settings."""

from collections.abc import Iterator, Sequence
from typing import Any

from retrieval_server.backends.dense.encoders import EncoderKind, shortened
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
        from transformers import AutoTokenizer

        self._settings = settings
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(settings.model, trust_remote_code=False)
            model = _OnnxModel(settings) if settings.onnx is not None else _TorchModel(settings)
        except Exception as cause:  # each library underneath raises its own errors
            raise RetrievalError(
                f"the encoder {settings.model} can not be loaded on {settings.device}: {cause}",
                remedy="give `encoder.model` a folder with a transformers model, or a name that this machine can "
                "download, and `encoder.device` a device of this machine",
            ) from cause
        self._model, self._padding = model, model.padding
        # A decoder sees no token to its right: with padding there, a text has the same states in any batch.
        self._tokenizer.padding_side = "right"
        self._end = self._end_token(settings.end_token)
        self.dimension = settings.dimensions or model.dimension
        if self.dimension > model.dimension:
            raise RetrievalError(
                f"the encoder {settings.model} makes vectors of {model.dimension} numbers, `dimensions` is "
                f"{settings.dimensions}",
                remedy="lower `encoder.dimensions`, or leave it out",
            )

    def _end_token(self, token: str | None) -> int | None:
        if token is None:
            return None
        number = self._tokenizer.get_vocab().get(token)
        if number is None:
            raise RetrievalError(
                f"the tokenizer of {self._settings.model} has no token {token!r}",
                remedy="give `encoder.end_token` the model's end token, or leave it out if its tokenizer appends one",
            )
        return number

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
        encoded = [self._ended(ids) for ids in encoded]
        with torch.inference_mode():
            for rows in batches([len(ids) for ids in encoded], self._padding):
                padded = self._tokenizer.pad({"input_ids": [encoded[row] for row in rows]}, return_tensors="pt")
                ids, mask = self._model.placed(padded["input_ids"]), self._model.placed(padded["attention_mask"])
                pooled = self._pooled(self._model.states(ids, mask).float(), mask)
                vectors[rows] = shortened(pooled.cpu().numpy(), self._settings)
        return vectors

    def _ended(self, ids: list[int]) -> list[int]:
        if self._end is None or ids[-1:] == [self._end]:
            return ids
        return [*ids[: self._settings.max_tokens - 1], self._end]

    def _pooled(self, hidden: Any, mask: Any) -> Any:
        import torch

        match self._settings.pooling:
            case "cls":
                return hidden[:, 0]
            case "last":
                last = mask.sum(dim=1).clamp(min=1) - 1
                return hidden[torch.arange(len(hidden), device=hidden.device), last]
            case "mean":
                weights = mask.unsqueeze(-1).to(hidden.dtype)
                return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


class _TorchModel:
    def __init__(self, settings: EncoderSettings) -> None:
        import torch
        from transformers import AutoModel

        model: Any = AutoModel.from_pretrained(
            settings.model, trust_remote_code=False, dtype=getattr(torch, settings.dtype)
        )
        self._device = settings.device
        self._model = model.to(settings.device).eval()
        self.dimension = int(model.config.hidden_size)
        self.padding = _CPU_PADDING if self._model.device.type == "cpu" else _ACCELERATOR_PADDING

    def placed(self, values: Any) -> Any:
        return values.to(self._device)

    def states(self, ids: Any, mask: Any) -> Any:
        """(texts, tokens, dimension)."""
        return self._model(input_ids=ids, attention_mask=mask).last_hidden_state


class _OnnxModel:
    """The same model for ONNX Runtime, on the CPU: its inputs are input_ids, attention_mask and token_type_ids, its
    first output the states.
    """

    padding = _CPU_PADDING

    def __init__(self, settings: EncoderSettings) -> None:
        import os

        import onnxruntime
        from transformers import AutoConfig
        from transformers.utils.hub import cached_file

        assert settings.onnx is not None, "a model for ONNX Runtime is named"
        path = cached_file(settings.model, settings.onnx)
        assert path is not None, "a missing file raises"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._inputs = {each.name for each in self._session.get_inputs()}
        self.dimension = int(AutoConfig.from_pretrained(settings.model, trust_remote_code=False).hidden_size)

    def placed(self, values: Any) -> Any:
        return values

    def states(self, ids: Any, mask: Any) -> Any:
        """(texts, tokens, dimension)."""
        import torch

        given = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
        if "token_type_ids" in self._inputs:
            given["token_type_ids"] = torch.zeros_like(ids).numpy()
        return torch.from_numpy(self._session.run(None, given)[0])


class TransformersKind(EncoderKind):
    """A transformers model in the process (extra `dense`; `onnx` in the settings needs the extra `onnx`)."""

    settings = EncoderSettings

    def load(self, settings: EncoderSettings) -> Encoder:
        return Encoder(settings)

    def model(self, settings: EncoderSettings) -> str:
        return settings.model


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


KIND = TransformersKind()
