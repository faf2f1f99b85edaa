"""Defines a reranker (its settings, and how it is opened) and registers every style.

Only a style's own module names it: the server, recipes and the doctor use its `RerankStyle`. This module imports no
model, so settings can be read without torch.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Protocol, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, model_validator

from retrieval_server.errors import RetrievalError
from retrieval_server.registry import Registry, settings_of
from retrieval_server.schemas import Document

_SLOTS = re.compile(r"\{title\}|\{text\}")


class RerankSettings(BaseModel, frozen=True):
    """The settings of a reranker. The class of a style sets `style` to the style's name, and adds its fields.

    The best `candidates` passages of the index are scored, as texts that `query` and `passage` describe.
    """

    model_config = ConfigDict(extra="forbid")

    style: str
    candidates: int = Field(default=50, ge=1, description="passages of the index that are scored for each query")
    query: str = Field(default="{query}", description="the text of a query for the model")
    passage: str = Field(default="{title}\n{text}", description="the text of a passage for the model")

    @model_validator(mode="after")
    def _holds_the_texts(self) -> Self:
        if "{query}" not in self.query or "{text}" not in self.passage:
            raise ValueError("`query` must contain {query}, and `passage` {text}")
        return self

    def answers(self) -> dict[str, Any]:
        """The settings that answers depend on, as JSON. A style leaves out where its model runs."""
        return self.model_dump(mode="json")

    def check_topk(self, topk: int) -> None:
        """Raise ValueError if fewer than `topk` passages are scored."""
        if topk > self.candidates:
            raise ValueError(f"`rerank.candidates` is {self.candidates}, below the {topk} requested passages: raise it")

    def query_text(self, query: str) -> str:
        """The query as the model reads it."""
        return self.query.replace("{query}", query)

    def passage_text(self, document: Document) -> str:
        """The passage as the model reads it; a missing title leaves no empty line."""
        values = {"{title}": document.title, "{text}": document.text}
        return _SLOTS.sub(lambda slot: values[slot[0]], self.passage).strip()


class Reranker(Protocol):
    """An opened reranker. Scores are higher for better passages; those of different queries need not compare.

    For example, one that likes short passages:

        class Shortest:
            def scores(self, asked):
                return [[-float(len(text)) for text in texts] for _, texts in asked]
    """

    def scores(self, asked: Sequence[tuple[str, Sequence[str]]]) -> list[list[float]]:
        """For each (query, texts) one score for each text, in the order of the texts. Called by one thread.

        Raises Unavailable if a service that it needs is away.
        """
        ...


class RerankStyle(ABC):
    """One style of reranker.

    class Settings(RerankSettings):
        style: Literal["shortest"] = "shortest"

    class ShortestStyle(RerankStyle):
        settings = Settings

        def load(self, settings):
            return Shortest()

    STYLE = ShortestStyle()
    """

    settings: ClassVar[type[RerankSettings]]

    @abstractmethod
    def load(self, settings: Any) -> Reranker:
        """The opened reranker. Raises RetrievalError."""

    def model(self, settings: Any) -> str | None:
        """The model that it loads, as a folder or a hub name; None: it loads none."""
        return None


RERANKERS: Registry[RerankStyle] = Registry(
    "reranker",
    group="retrieval_server.rerankers",
    own={
        "cross_encoder": "retrieval_server.reranking.cross_encoder:STYLE",
        "late_interaction": "retrieval_server.reranking.late_interaction:STYLE",
        "cohere": "retrieval_server.reranking.services:COHERE",
        "tei": "retrieval_server.reranking.services:TEI",
        "search_r1": "retrieval_server.reranking.services:SEARCH_R1",
    },
    kind=RerankStyle,
    error=RetrievalError,
)


def _registered(values: Any) -> Any:
    return settings_of(RERANKERS, values, field="style")


AnyRerankSettings = Annotated[SerializeAsAny[RerankSettings], BeforeValidator(_registered)]
"""Settings of any registered style, by their field `style`."""
