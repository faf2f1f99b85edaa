"""A cross-encoder in the process, by sentence-transformers: one score for a query and a passage read together."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from retrieval_server.errors import RetrievalError
from retrieval_server.rerankers import Reranker, RerankStyle
from retrieval_server.reranking.models import ModelSettings, load


class CrossEncoderSettings(ModelSettings, frozen=True):
    """A sequence classifier with one label; the score is its logit. Remote code is never run."""

    style: Literal["cross_encoder"] = "cross_encoder"
    max_tokens: int = Field(default=512, ge=1, description="tokens of query and passage together")


class CrossEncoder:
    """The loaded model."""

    def __init__(self, settings: CrossEncoderSettings) -> None:
        import torch

        self._settings = settings
        self._model = load(
            "CrossEncoder",
            ("ForSequenceClassification",),
            model=settings.model,
            device=settings.device,
            dtype=settings.dtype,
            max_length=settings.max_tokens,
            activation_fn=torch.nn.Identity(),
        )
        if (labels := self._model.num_labels) != 1:
            raise RetrievalError(
                f"the model {settings.model} has {labels} labels, a reranker has one",
                remedy="give `rerank.model` a cross-encoder with one label",
            )

    def scores(self, asked: Sequence[tuple[str, Sequence[str]]]) -> list[list[float]]:
        """The logits. Equal pairs are computed once, so that copies of a passage get equal scores."""
        pairs = list(dict.fromkeys((query, text) for query, texts in asked for text in texts))
        found = self._model.predict(pairs, batch_size=self._settings.batch, show_progress_bar=False) if pairs else []
        known = dict(zip(pairs, map(float, found), strict=True))
        return [[known[query, text] for text in texts] for query, texts in asked]


class CrossEncoderStyle(RerankStyle):
    """A cross-encoder in the process (extra `rerank`)."""

    settings = CrossEncoderSettings

    def load(self, settings: CrossEncoderSettings) -> Reranker:
        return CrossEncoder(settings)

    def model(self, settings: CrossEncoderSettings) -> str:
        return settings.model


STYLE = CrossEncoderStyle()
