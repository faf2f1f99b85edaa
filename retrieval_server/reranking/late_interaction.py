"""Late interaction in the process: every token of a query finds its most similar token of a passage (ColBERT's MaxSim).

The candidates are encoded when they are found, and compared exactly. That needs no vectors of the whole corpus, which
would take about 68 bytes for each token.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from retrieval_server.rerankers import Reranker, RerankStyle
from retrieval_server.reranking.models import ModelSettings, load


class LateInteractionSettings(ModelSettings, frozen=True):
    """A multi-vector model (ColBERT's or PyLate's form); the score is the sum of the best products. No remote code."""

    style: Literal["late_interaction"] = "late_interaction"
    max_tokens: int | None = Field(default=None, ge=1, description="tokens of a passage; default: the model's own")


class LateInteraction:
    """The loaded model."""

    def __init__(self, settings: LateInteractionSettings) -> None:
        self._settings = settings
        self._model = load(
            "MultiVectorEncoder",
            ("HF_ColBERT", "ForRetrieval"),
            model=settings.model,
            device=settings.device,
            dtype=settings.dtype,
        )
        if settings.max_tokens is not None:
            self._model[0].document_length = settings.max_tokens

    def scores(self, asked: Sequence[tuple[str, Sequence[str]]]) -> list[list[float]]:
        """The sums over the query's tokens of the largest product with a token of the text. Texts are encoded once."""
        texts = list(dict.fromkeys(text for _, texts in asked for text in texts))
        if not texts:
            return [[] for _ in asked]
        options = {"batch_size": self._settings.batch, "show_progress_bar": False}
        documents = self._model.encode_document(texts, **options)
        known = dict(zip(texts, documents, strict=True))
        queries = self._model.encode_query([query for query, _ in asked], **options)
        return [
            [float((tokens.float() @ known[text].float().T).amax(dim=1).sum()) for text in own]
            for tokens, (_, own) in zip(queries, asked, strict=True)
        ]


class LateInteractionStyle(RerankStyle):
    """A multi-vector model in the process (extra `rerank`)."""

    settings = LateInteractionSettings

    def load(self, settings: LateInteractionSettings) -> Reranker:
        return LateInteraction(settings)

    def model(self, settings: LateInteractionSettings) -> str:
        return settings.model


STYLE = LateInteractionStyle()
