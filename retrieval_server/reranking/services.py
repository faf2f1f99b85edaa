"""Rerankers behind a URL: Cohere's contract (also vLLM's and Jina's), that of Text Embeddings Inference, Search-R1's.

A service answers with the numbers of the texts and their scores, in any order. Every text must have exactly one score:
a passage is never ranked without one.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import batched
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from retrieval_server.errors import QueryError, RequestRefused, SearchRefused
from retrieval_server.rerankers import Reranker, RerankSettings, RerankStyle
from retrieval_server.services import ModelService, checked_url

_SHORT = "a"  # a text that no service refuses


class ServiceSettings(RerankSettings, frozen=True):
    """A reranker at `url`, the whole address of its route. Several requests are under way at a time."""

    url: str
    model: str
    key_variable: str | None = Field(default=None, description="environment variable with the service's key")
    timeout_s: float = Field(default=30.0, gt=0, description="seconds for one request")
    patience_s: float = Field(default=20.0, ge=0, description="seconds to ask again while it is away or overloaded")
    parallel: int = Field(default=8, ge=1, description="requests at a time")
    texts: int = Field(default=1000, ge=1, description="texts in a request at most")
    characters: int | None = Field(default=None, ge=1, description="characters of a text that are sent; default: all")

    _url = field_validator("url")(checked_url)

    def answers(self) -> dict[str, Any]:
        """Without the address, unless no `model` says what runs there."""
        away = {"key_variable", "timeout_s", "patience_s", "parallel", "texts"}
        away |= {name for name, left_out in (("url", self.model), ("characters", self.characters is None)) if left_out}
        return self.model_dump(mode="json", exclude=away)


class CohereSettings(ServiceSettings, frozen=True):
    """`/rerank`, `/v1/rerank` or `/v2/rerank` of vLLM, Cohere or Jina. `extra` is added to each request."""

    style: Literal["cohere"] = "cohere"
    extra: dict[str, Any] = Field(default_factory=dict, description="more fields of a request")


class TeiSettings(ServiceSettings, frozen=True):
    """`/rerank` of Text Embeddings Inference. `model` only describes what runs there."""

    style: Literal["tei"] = "tei"
    model: str = ""
    texts: int = Field(default=32, ge=1, description="texts in a request at most (its --max-client-batch-size)")
    extra: dict[str, Any] = Field(default_factory=lambda: {"truncate": True}, description="more fields of a request")


class SearchR1Settings(ServiceSettings, frozen=True):
    """`/rerank` of Search-R1's rerank server. `model` only describes what runs there."""

    style: Literal["search_r1"] = "search_r1"
    model: str = ""
    passage: str = '"{title}"\n{text}'


class ServiceStyle(RerankStyle):
    """A contract: how a query with its texts is sent, and where the scores are in the answer."""

    wanted: ClassVar[str]
    """The form of an answer, for errors."""

    @abstractmethod
    def request(self, settings: Any, query: str, texts: Sequence[str]) -> Mapping[str, Any]:
        """The body for a query with at least one text."""

    @abstractmethod
    def numbered(self, answer: Any, texts: Sequence[str]) -> Sequence[tuple[int, float]]:
        """The number and the score of each text. Any exception means that the answer has another form."""

    def load(self, settings: ServiceSettings) -> Reranker:
        return Service(self, settings)


class Service:
    """A reranker of any contract. A query is a request, or several if it has many texts."""

    def __init__(self, style: ServiceStyle, settings: ServiceSettings) -> None:
        self._style, self._settings = style, settings
        self._service = ModelService(
            "the reranker",
            settings.url,
            key_variable=settings.key_variable,
            timeout_s=settings.timeout_s,
            patience_s=settings.patience_s,
        )
        self._threads = ThreadPoolExecutor(settings.parallel, thread_name_prefix="rerank")

    def scores(self, asked: Sequence[tuple[str, Sequence[str]]]) -> list[list[float]]:
        """Equal texts of a query are sent once. Raises Unavailable or RetrievalError.

        If the service refuses a request, raises QueryError if it refuses the query with any text, else SearchRefused:
        a text is at fault, which the query can not change.
        """
        cut = [(query, [text[: self._settings.characters] for text in given]) for query, given in asked]
        jobs = [
            (number, query, list(texts))
            for number, (query, given) in enumerate(cut)
            for texts in batched(dict.fromkeys(given), self._settings.texts)
        ]
        known: list[dict[str, float]] = [{} for _ in asked]
        for (number, _, texts), scored in zip(jobs, self._threads.map(self._scored, jobs), strict=True):
            known[number].update(zip(texts, scored, strict=True))
        return [[own[text] for text in given] for own, (_, given) in zip(known, cut, strict=True)]

    def _asked(self, query: str, texts: Sequence[str]) -> Any:
        try:
            return self._service.post(self._style.request(self._settings, query, texts))
        except RequestRefused as cause:
            reason = str(cause).splitlines()[0]
        try:
            self._service.post(self._style.request(self._settings, query, [_SHORT]))
        except RequestRefused as cause:
            raise QueryError(reason) from cause
        raise SearchRefused(
            403,
            "refused_by_reranker",
            reason,
            "if a passage is too long for the model, cut it: by the service (`rerank.extra`, for example "
            "{truncate_prompt_tokens: -1} for vLLM) or by `rerank.characters`; if there are too many, lower "
            "`rerank.texts` or `rerank.candidates`",
        )

    def _scored(self, job: tuple[int, str, list[str]]) -> list[float]:
        _, query, texts = job
        answer = self._asked(query, texts)
        try:
            numbered = [(int(number), float(score)) for number, score in self._style.numbered(answer, texts)]
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as cause:
            raise self._service.unknown_form(answer, self._style.wanted) from cause
        found = dict(numbered)
        if sorted(number for number, _ in numbered) != list(range(len(texts))) or not all(
            math.isfinite(score) for score in found.values()
        ):
            raise self._service.unknown_form(answer, f"one score for each of the {len(texts)} texts")
        return [found[number] for number in range(len(texts))]


class CohereStyle(ServiceStyle):
    """Cohere's contract, as vLLM and Jina serve it."""

    settings = CohereSettings
    wanted = '{"results": [{"index": 0, "relevance_score": 0.5}, …]}'

    def request(self, settings: CohereSettings, query: str, texts: Sequence[str]) -> Mapping[str, Any]:
        return {"model": settings.model, "query": query, "documents": texts, "top_n": len(texts), **settings.extra}

    def numbered(self, answer: Any, texts: Sequence[str]) -> Sequence[tuple[int, float]]:
        return [(one["index"], one["relevance_score"]) for one in answer["results"]]


class TeiStyle(ServiceStyle):
    """The contract of Text Embeddings Inference."""

    settings = TeiSettings
    wanted = '[{"index": 0, "score": 0.5}, …]'

    def request(self, settings: TeiSettings, query: str, texts: Sequence[str]) -> Mapping[str, Any]:
        return {"query": query, "texts": texts, "raw_scores": True, **settings.extra}

    def numbered(self, answer: Any, texts: Sequence[str]) -> Sequence[tuple[int, float]]:
        return [(one["index"], one["score"]) for one in answer]


class SearchR1Style(ServiceStyle):
    """The contract of Search-R1's rerank server, which ours serves too. Its answer repeats the texts."""

    settings = SearchR1Settings
    wanted = '{"result": [[{"document": "…", "score": 0.5}, …]]}'

    def request(self, settings: SearchR1Settings, query: str, texts: Sequence[str]) -> Mapping[str, Any]:
        documents = [{"contents": text} for text in texts]
        return {"queries": [query], "documents": [documents], "rerank_topk": len(texts), "return_scores": True}

    def numbered(self, answer: Any, texts: Sequence[str]) -> Sequence[tuple[int, float]]:
        [scored] = answer["result"]
        shown: dict[str, list[int]] = {}
        for number, text in enumerate(texts):
            shown.setdefault(search_r1_text(text), []).append(number)
        return [(shown[one["document"]].pop(), one["score"]) for one in scored]


def search_r1_text(contents: str) -> str:
    """A passage as Search-R1's rerank server shows it to its model, and returns it."""
    title, _, text = contents.partition("\n")
    return f"(Title: {title}) {text}"


COHERE, TEI, SEARCH_R1 = CohereStyle(), TeiStyle(), SearchR1Style()
