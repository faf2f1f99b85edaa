"""The settings that all engines have: what is searched, where the engine is, and how long to wait for it."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from retrieval_server.backends.dense.encoders import AnyEncoderSettings, encoder_place
from retrieval_server.index_kinds import IndexSettings

_TERMS = ("k1", "b", "stemmer", "stopwords")
_FUSION = ("fused", "rank_constant", "dense_weight", "bm25_weight")


class EngineSettings(IndexSettings, frozen=True):
    """`search`: `dense` needs an `encoder`, `bm25` has Lucene's formula and English analysis, `hybrid` fuses both.

    `name` begins the name of the table or collection; a hash of what fills it follows. Keys and passwords come from the
    environment and not from here, since these settings are written into manifests and logs.
    """

    url: str
    name: str = Field(default="passages", pattern=r"^[a-z][a-z0-9_]{0,39}$")
    search: Literal["dense", "bm25", "hybrid"] = "dense"
    encoder: AnyEncoderSettings | None = None
    k1: float = Field(default=0.9, ge=0)
    b: float = Field(default=0.4, ge=0, le=1)
    stemmer: str = "porter"
    stopwords: str = "english"
    batch: int = Field(default=1000, ge=1, description="passages in a request that fills the engine")
    timeout_s: float = Field(default=60.0, gt=0, description="seconds that the engine may take for a request")
    patience_s: float = Field(default=10.0, ge=0, description="seconds to repeat a search while the engine is away")
    fused: int = Field(default=100, ge=1, description="hybrid: passages of each of the two lists")
    rank_constant: int = Field(default=60, ge=0, description="hybrid: a list gives weight / (this + rank) to a passage")
    dense_weight: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="hybrid: weight of the dense list")
    bm25_weight: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="hybrid: weight of the BM25 list")

    built_with: ClassVar[tuple[str, ...]] = ()
    """The engine's own fields that an index is built with."""
    searched_with: ClassVar[tuple[str, ...]] = ()
    """The engine's own fields that only answers depend on."""
    of_vectors: ClassVar[tuple[str, ...]] = ()
    """The engine's own fields that mean nothing without vectors."""

    @model_validator(mode="after")
    def _encoder_for_vectors(self) -> Self:
        if self.dense and self.encoder is None:
            raise ValueError(f"`search: {self.search}` compares vectors: give `encoder` (at least its `model`)")
        if not self.dense and self.encoder is not None:
            raise ValueError(f"`search: {self.search}` uses no `encoder`: leave it out, or set `search: hybrid`")
        return self

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> Self:
        fields = type(self).model_fields
        ignored = [
            f"`{name}` has no effect with `{reason}`: leave it out"
            for name, reason in self.unused().items()
            if getattr(self, name) != fields[name].default
        ]
        if ignored:
            raise ValueError("; ".join(ignored))
        return self

    def unused(self) -> dict[str, str]:
        """The fields that these settings do not use, each with the setting that is the reason."""
        reason = f"search: {self.search}"
        names = (
            *(() if self.dense else self.of_vectors),
            *(() if self.lexical else _TERMS),
            *(() if self.fuses() else _FUSION),
        )
        return dict.fromkeys(names, reason)

    @property
    def dense(self) -> bool:
        """Whether the engine holds vectors."""
        return self.search != "bm25"

    @property
    def lexical(self) -> bool:
        """Whether the engine holds terms."""
        return self.search != "dense"

    def identity(self) -> dict[str, Any]:
        """The settings that an index is built with."""
        found: dict[str, Any] = {"search": self.search}
        if self.encoder is not None:
            found["encoder"] = self.encoder.identity()
        return found | self._used(self.built_with, _TERMS)

    def answers(self) -> dict[str, Any]:
        """The settings that answers depend on."""
        encoder = {} if self.encoder is None else {"encoder": self.encoder.answers()}
        return self.identity() | encoder | self._used(self.searched_with, _FUSION)

    def _used(self, *names: tuple[str, ...]) -> dict[str, Any]:
        return self.model_dump(mode="json", include=set().union(*names) - self.unused().keys())

    def place(self) -> dict[str, Any]:
        """Where the index is, and its encoder if that is a service."""
        return {"url": self.url, "name": self.name, **encoder_place(self.encoder)}

    def fuses(self) -> bool:
        """Whether both lists are searched."""
        return self.search == "hybrid"

    def check_topk(self, topk: int) -> None:
        """Raise ValueError if `topk` exceeds what the two fused lists hold."""
        if self.fuses() and self.fused < topk:
            raise ValueError(f"`fused` is {self.fused}, below the {topk} requested passages: raise it")
