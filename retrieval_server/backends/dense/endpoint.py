"""An encoder behind OpenAI's embeddings contract: OpenAI, vLLM, Text Embeddings Inference, llama.cpp, and others."""

import base64
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import batched
from typing import Any, Literal

from pydantic import Field, field_validator

from retrieval_server.backends.dense.encoders import Encoder, EncoderBase, EncoderKind, shortened
from retrieval_server.errors import QueryError, RequestRefused, RetrievalError
from retrieval_server.services import ModelService, checked_url

_WANTED = '{"data": [{"index": 0, "embedding": […]}, …]}'


class EndpointSettings(EncoderBase, frozen=True):
    """`POST {url}/embeddings`; `url` is the base, which usually ends with /v1.

    Vectors are asked for as base64, a quarter of the bytes of numbers in JSON; `encoding: float` is for services
    without it. `query_extra` and `passage_extra` are added to the requests, for example `truncate_prompt_tokens`.
    """

    kind: Literal["openai"] = "openai"
    url: str
    key_variable: str | None = Field(default=None, description="environment variable with the service's key")
    encoding: Literal["base64", "float"] = "base64"
    query_extra: dict[str, Any] = Field(default_factory=dict)
    passage_extra: dict[str, Any] = Field(default_factory=dict)
    texts: int = Field(default=64, ge=1, description="texts in a request at most")
    parallel: int = Field(default=4, ge=1, description="requests at a time")
    timeout_s: float = Field(default=60.0, gt=0, description="seconds for one request")
    patience_s: float = Field(default=20.0, ge=0, description="seconds to ask again while it is away or overloaded")

    _url = field_validator("url")(checked_url)

    def identity(self) -> dict[str, Any]:
        away = {"url", "key_variable", "encoding", "texts", "parallel", "timeout_s", "patience_s"}
        return self.model_dump(mode="json", exclude=away)

    def place(self) -> dict[str, Any]:
        return self.model_dump(mode="json", include={"url", "key_variable", "encoding"})


class Endpoint:
    """The opened service. Its first answer tells the number of numbers in a vector."""

    def __init__(self, settings: EndpointSettings) -> None:
        self._settings = settings
        self._service = ModelService(
            "the encoder",
            f"{settings.url}/embeddings",
            key_variable=settings.key_variable,
            timeout_s=settings.timeout_s,
            patience_s=settings.patience_s,
        )
        self._threads = ThreadPoolExecutor(settings.parallel, thread_name_prefix="encode")
        self.dimension = int(self._encode(["a"], settings.query_prefix, settings.query_extra).shape[1])

    def queries(self, texts: Sequence[str]) -> Any:
        """float32 (texts, dimension). Raises Unavailable, RetrievalError, and QueryError if a text is refused."""
        try:
            return self._encode(texts, self._settings.query_prefix, self._settings.query_extra)
        except RequestRefused as cause:  # it accepted another query when it was opened
            raise QueryError(str(cause).splitlines()[0]) from cause

    def passages(self, texts: Sequence[str]) -> Any:
        """float32 (texts, dimension). Raises Unavailable or RetrievalError."""
        try:
            return self._encode(texts, self._settings.passage_prefix, self._settings.passage_extra)
        except RequestRefused as cause:
            raise RetrievalError(
                str(cause).splitlines()[0],
                remedy="if a passage is too long for the model, let the service cut it by `encoder.passage_extra`, for "
                "example {truncate_prompt_tokens: 512} for vLLM; otherwise see the message",
            ) from cause

    def _encode(self, texts: Sequence[str], prefix: str, extra: Mapping[str, Any]) -> Any:
        import numpy as np

        if not texts:
            return np.empty((0, self.dimension), dtype=np.float32)
        sent = batched((prefix + text or " " for text in texts), self._settings.texts)  # an empty text is refused
        return np.concatenate(list(self._threads.map(lambda some: self._asked(some, extra), sent)))

    def _asked(self, texts: Sequence[str], extra: Mapping[str, Any]) -> Any:
        import numpy as np

        settings = self._settings
        body = {"model": settings.model, "input": list(texts), "encoding_format": settings.encoding, **extra}
        answer = self._service.post(body)
        try:
            found = {int(one["index"]): _vector(one["embedding"]) for one in answer["data"]}
            vectors = np.stack([found[number] for number in range(len(texts))])
            if len(answer["data"]) != len(texts) or not vectors.size or not np.isfinite(vectors).all():
                raise ValueError("not one vector for each text")
        except (KeyError, TypeError, ValueError, AttributeError) as cause:
            raise self._service.unknown_form(answer, f"{_WANTED} with one vector for each text") from cause
        return shortened(vectors, settings)


def _vector(value: Any) -> Any:
    """1-D float32, from base64 of little-endian float32 or from numbers. Raises ValueError or TypeError."""
    import numpy as np

    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value, validate=True), dtype="<f4")
    vector = np.asarray(value, dtype=np.float32)
    if vector.ndim != 1:
        raise ValueError("not a list of numbers")
    return vector


class EndpointKind(EncoderKind):
    """A model that runs elsewhere."""

    settings = EndpointSettings

    def load(self, settings: EndpointSettings) -> Encoder:
        return Endpoint(settings)


KIND = EndpointKind()
