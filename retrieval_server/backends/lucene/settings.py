"""The settings of an existing Lucene index."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from retrieval_server.index_kinds import IndexSettings


class LuceneSettings(IndexSettings, frozen=True):
    """An existing Lucene index, searched by pyserini as Anserini's SimpleSearcher does. Needs Java and pyserini."""

    kind: Literal["lucene"] = "lucene"
    path: Path
    k1: float = Field(default=0.9, ge=0)
    b: float = Field(default=0.4, ge=0, le=1)

    def identity(self) -> dict[str, Any]:
        """The settings that an index is built with."""
        return {"path": str(self.path)}

    def answers(self) -> dict[str, Any]:
        """The settings that answers depend on, besides the contents of the folder."""
        return self.model_dump(mode="json", exclude={"kind", "path"})
