"""Defines an encoder of texts (its settings, and how it is opened) and registers every kind.

Only an encoder's own module names it: indexes, the doctor and recipes use its `EncoderKind`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Protocol

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny

from retrieval_server.errors import RetrievalError
from retrieval_server.registry import Registry, settings_of

DEFAULT = "transformers"
MOST_TOKENS = 256
"""The tokens of a text at most, if nothing else is said."""


class EncoderBase(BaseModel, frozen=True):
    """The settings that all encoders have. The class of a kind sets `kind` to the kind's name, and adds its fields."""

    model_config = ConfigDict(extra="forbid")

    kind: str
    model: str
    normalize: bool = True
    query_prefix: str = ""
    passage_prefix: str = ""
    dimensions: int | None = Field(
        default=None, ge=1, description="numbers of a vector that are kept (Matryoshka models); default: all"
    )

    @classmethod
    def variants(cls) -> Iterator[type["EncoderBase"]]:
        """The settings of every kind."""
        return (kind.settings for kind in ENCODERS.loadable())

    def identity(self) -> dict[str, Any]:
        """The settings that vectors depend on, as JSON."""
        return self.model_dump(mode="json")

    def answers(self) -> dict[str, Any]:
        """Those, and the settings that only change how exactly vectors are computed: answers depend on them, too."""
        return self.identity()

    def place(self) -> dict[str, Any]:
        """The settings that say where it is, as JSON, for the manifest. They may change; a key is never one of them."""
        return {}

    def longest(self) -> int:
        """About the most tokens of a text that it encodes, for the cost of a query."""
        return MOST_TOKENS

    def placed(self) -> tuple[str, int]:
        """The device that it computes on, and the bytes of a number there; 0: none of ours."""
        return "cpu", 0


class Encoder(Protocol):
    """An opened encoder."""

    dimension: int
    """The number of numbers in a vector."""

    def queries(self, texts: Sequence[str]) -> Any:
        """float32 (texts, dimension). Raises Unavailable if a service that it needs is away."""
        ...

    def passages(self, texts: Sequence[str]) -> Any:
        """float32 (texts, dimension), likewise."""
        ...


class EncoderKind(ABC):
    """One kind of encoder.

    class Settings(EncoderBase, frozen=True):
        kind: Literal["letters"] = "letters"

    class Letters(EncoderKind):
        settings = Settings

        def load(self, settings):
            return LetterCounts(settings)
    """

    settings: ClassVar[type[EncoderBase]]

    @abstractmethod
    def load(self, settings: Any) -> Encoder:
        """The opened encoder. Raises RetrievalError."""

    def model(self, settings: Any) -> str | None:
        """The model that it loads, as a folder or a hub name; None: it loads none."""
        return None


ENCODERS: Registry[EncoderKind] = Registry(
    "encoder",
    group="retrieval_server.encoders",
    own={
        "transformers": "retrieval_server.backends.dense.encoder:KIND",
        "openai": "retrieval_server.backends.dense.endpoint:KIND",
    },
    kind=EncoderKind,
    error=RetrievalError,
)


def open_encoder(settings: EncoderBase) -> Encoder:
    """The encoder of these settings. Raises RetrievalError."""
    return ENCODERS[settings.kind].load(settings)


def encoder_place(encoder: EncoderBase | None) -> dict[str, Any]:
    """An index's setting `encoder` with the place of it, for `IndexSettings.place`; nothing if it has no place."""
    place = encoder and encoder.place()
    return {"encoder": encoder.identity() | place} if encoder and place else {}


def shortened(vectors: Any, settings: EncoderBase) -> Any:
    """float32 (texts, dimension): the first `dimensions` numbers of each vector, then with unit length if asked for.

    Raises RetrievalError if the vectors, (texts, numbers), are shorter than that.
    """
    import numpy as np

    kept = np.asarray(vectors, dtype=np.float32)
    if settings.dimensions is not None:
        if settings.dimensions > kept.shape[1]:
            raise RetrievalError(
                f"the encoder {settings.model} makes vectors of {kept.shape[1]} numbers, `dimensions` is "
                f"{settings.dimensions}",
                remedy="lower `encoder.dimensions`, or leave it out",
            )
        kept = kept[:, : settings.dimensions]
    if settings.normalize:
        lengths = np.linalg.norm(kept, axis=1, keepdims=True)
        kept = kept / np.maximum(lengths, np.float32(1e-12))
    return np.ascontiguousarray(kept)


def _registered(values: Any) -> Any:
    return settings_of(ENCODERS, values, field="kind", default=DEFAULT)


AnyEncoderSettings = Annotated[SerializeAsAny[EncoderBase], BeforeValidator(_registered)]
"""Settings of any registered encoder, by their field `kind`; without it, of a transformers model."""
