"""The settings of a hybrid index: its parts, and how their rankings are fused."""

import re
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from retrieval_server.backends.fusion import FUSION, STAGE
from retrieval_server.index_kinds import AnyIndexSettings, IndexSettings, kind_of

_NAME = re.compile(r"[a-z][a-z0-9_]*")
RESERVED = (STAGE, FUSION, "rerank")


class PartSettings(BaseModel):
    """One of the indexes. Its ranking counts `weight` times."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: AnyIndexSettings
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)


class HybridSettings(IndexSettings, frozen=True):
    """Several indexes of one corpus, fused by reciprocal rank: a passage scores the sum of weight / (constant + rank).

    `parts` maps names to indexes. The first `depth` hits of each part count; a passage that a part did not find there
    gets nothing from it.
    """

    kind: Literal["hybrid"] = "hybrid"
    parts: dict[str, PartSettings]
    depth: int = Field(default=100, ge=1)
    constant: float = Field(default=60.0, ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _has_parts(self) -> Self:
        if len(self.parts) < 2:
            raise ValueError("`parts` needs two indexes or more")
        for name, part in self.parts.items():
            if not _NAME.fullmatch(name) or name in RESERVED:
                raise ValueError(f"the part {name!r} needs another name: lower-case letters, digits and _")
            if part.index.fuses():
                raise ValueError(f"the part {name!r} fuses rankings itself: name each of them as a part here")
            if not kind_of(part.index).searches_corpus:
                raise ValueError(f"the part {name!r} ({part.index.kind}) searches no corpus: it can not be fused")
            part.index.check_topk(self.depth)
        return self

    def fuses(self) -> bool:
        """Always: it has parts."""
        return True

    def check_topk(self, topk: int) -> None:
        """Raise ValueError if fewer than `topk` hits of each part count."""
        if topk > self.depth:
            raise ValueError(f"`depth` is {self.depth}, below the {topk} requested passages: raise it")

    def identity(self) -> dict[str, Any]:
        """What the parts are built with."""
        return {"parts": self._parts(lambda index: index.identity())}

    def answers(self) -> dict[str, Any]:
        """The settings that answers depend on, with the weights and the fusion's."""
        parts: dict[str, Any] = self._parts(lambda index: index.answers())
        for name, part in self.parts.items():
            parts[name]["weight"] = part.weight
        return {"parts": parts, "depth": self.depth, "constant": self.constant}

    def searched(self) -> dict[str, Any]:
        """The weights, the fusion's settings, and each part's."""
        parts = {name: {"index": part.index.searched(), "weight": part.weight} for name, part in self.parts.items()}
        return {"parts": parts, "depth": self.depth, "constant": self.constant}

    def _parts(self, described: Any) -> dict[str, Any]:
        return {
            name: {"index": {"kind": part.index.kind, **described(part.index)}} for name, part in self.parts.items()
        }

    def place(self) -> dict[str, Any]:
        """The parts, with the settings that say where each is; nothing if no part has any."""
        if not any(index.place() for index in self.indexes.values()):
            return {}
        return {"parts": self._parts(lambda index: index.identity() | index.place())}

    @property
    def indexes(self) -> Mapping[str, IndexSettings]:
        """The settings of each part's index."""
        return {name: part.index for name, part in self.parts.items()}
