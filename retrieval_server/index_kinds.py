"""Defines a kind of index (its settings, building, opening and needs) and registers every kind.

Only a kind's own folder names it: the server, the builder, recipes and the doctor use its `IndexKind`. This module
imports no backend, so settings can be read without numpy, FAISS and torch.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, SerializeAsAny

from retrieval_server.digests import digest_of
from retrieval_server.errors import RetrievalError
from retrieval_server.registry import Registry, settings_of

if TYPE_CHECKING:
    from retrieval_server.backends.base import Backend, Passages, WaitingBackend
    from retrieval_server.corpus import Corpus, Report

DEFAULT = "bm25"
MANIFEST = "manifest.json"
"""The file of an index folder that says what it was made from."""
SEARCH, PLACE = "search", "place"
"""Its fields for settings that may change: those of the search, and where the index is."""


class IndexSettings(BaseModel, frozen=True):
    """The settings of an index. The class of a kind sets `kind` to the kind's name, and adds its fields."""

    model_config = ConfigDict(extra="forbid")

    kind: str

    def identity(self) -> dict[str, Any]:
        """The settings that an index is built with, as JSON: with other values it is a different index."""
        return self.model_dump(mode="json", exclude={"kind"})

    def answers(self) -> dict[str, Any]:
        """The settings that answers depend on, as JSON: those of `identity`, and those that only the search uses."""
        return self.identity()

    def searched(self) -> dict[str, Any]:
        """The fields that answers depend on and the index does not, as JSON. They are recorded beside the identity: a
        server that is given no settings searches with those of the build."""
        fields = type(self).model_fields
        return {name: value for name, value in _besides(self.answers(), self.identity()).items() if name in fields}

    def place(self) -> dict[str, Any]:
        """The settings that say where an index is, as JSON. They are recorded beside the identity, and may change."""
        return {}

    def fuses(self) -> bool:
        """Whether the search fuses several rankings. Then it can not be a part of a hybrid index."""
        return False

    def check_topk(self, topk: int) -> None:
        """Raise ValueError if the index can not return `topk` passages for a query."""

    def most(self, limit: int) -> int:
        """The largest number of passages up to `limit` that `check_topk` allows; it allows all smaller numbers."""
        least = 1
        while least < limit:
            middle = (least + limit + 1) // 2
            try:
                self.check_topk(middle)
                least = middle
            except ValueError:
                limit = middle - 1
        return least


def _besides(values: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are not among the known ones, also those within sections."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and isinstance(known.get(name), dict):
            if more := _besides(value, known[name]):
                found[name] = more
        elif name not in known or value != known[name]:
            found[name] = value
    return found


@dataclass(frozen=True, slots=True)
class IndexNeed:
    """What an opened index needs, in bytes: RAM, disk, and what is held on each GPU, by name.

    A size that can not be predicted is 0. An index that is mapped into memory needs no RAM.
    """

    ram: int = 0
    disk: int = 0
    cards: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """What each variant of a kind is expected to need, as a table for `index plan`; its note says how it is known."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str


class IndexKind(ABC):
    """One kind of index, with everything that other code needs of it.

    A small one, over passages that it keeps in a list:

        class Settings(IndexSettings):
            kind: Literal["reversed"] = "reversed"

        class Reversed(IndexKind):
            settings, format = Settings, 1

            def build(self, corpus, settings, folder, *, report):
                (folder / "texts.json").write_text(json.dumps([passage.contents[::-1] for passage in corpus]))
                return {}

            def load(self, corpus, folder, settings, *, report):
                return ReversedBackend(json.loads((folder / "texts.json").read_text()))

        KIND = Reversed()
    """

    settings: ClassVar[type[IndexSettings]]
    format: ClassVar[int]
    """The version of the file format. An index with another version is built again."""
    progress: ClassVar[tuple[str, ...]] = ()
    """Files in which a build records its progress. With any, a killed build continues in the same folder."""
    searches_corpus: ClassVar[bool] = True
    """Whether it is an index over a corpus. A kind that is not has `open` and `source`, and is never built."""
    built_at_start: ClassVar[bool] = False
    """Whether a server that finds no index builds one before it answers."""
    ready_within_s: ClassVar[float | None] = None
    """How many seconds opening may take at most; None: the default of all services."""
    disk_ratio: ClassVar[float] = 0.0
    """Bytes of the index per byte of the corpus, if the size depends on the text; 0: it can not be predicted."""
    to_make_smaller: ClassVar[str] = "take an index that needs less, or give it more memory"
    """What to change if it does not fit into memory."""

    @abstractmethod
    def load(self, corpus: "Corpus", folder: Path, settings: Any, *, report: "Report") -> "Backend":
        """The opened index. Raises RetrievalError; any other exception is reported as a damaged index."""

    def open(self, folder: Path, settings: Any, *, report: "Report") -> "tuple[Passages, WaitingBackend, str]":
        """What a kind without a corpus searches, and what `source` says of exactly this. Raises RetrievalError."""
        raise NotImplementedError

    def source(self, folder: Path, settings: Any) -> str:
        """What a kind without a corpus searches, as text that differs for other contents. Raises RetrievalError."""
        raise NotImplementedError

    def build(self, corpus: "Corpus", settings: Any, folder: Path, *, report: "Report") -> dict[str, Any]:
        """Write the index into an empty folder, and describe it in the manifest. Raises RetrievalError."""
        raise RetrievalError(f"an index of `kind: {settings.kind}` is opened unchanged, and not built here")

    def foreign(self, settings: Any) -> Path | None:
        """The file or folder of an index made elsewhere, which is opened unchanged; None: we build the index."""
        return None

    def answers(self, settings: Any) -> dict[str, Any]:
        """The settings that answers depend on, and a digest of the contents of an index made elsewhere.

        Raises RetrievalError if that index can not be read.
        """
        made = self.foreign(settings)
        return settings.answers() | ({} if made is None else {"contents": digest_of(made)})

    def progress_of(self, settings: Any) -> tuple[str, ...]:
        """The files of `progress`, relative to the index's folder."""
        return self.progress

    def made_with(self, settings: Any) -> dict[str, Any]:
        """What an index depends on besides its settings, for example the release of a stemmer."""
        return {}

    def need(self, settings: Any, *, passages: int, dimension: int, cards: int) -> IndexNeed:
        """What it needs for `passages` passages. `dimension`: numbers of a vector; `cards`: GPUs that it may use."""
        return IndexNeed()

    def plan(self, *, passages: int, dimension: int, candidates: int | None) -> IndexPlan | None:
        """The table of its variants; None: it has none. `candidates` to re-rank; None: the kind's default."""
        return None

    def models(self, settings: Any) -> Mapping[str, str]:
        """The models that it loads, as folders or hub names, by the section of the settings with that `model`."""
        return {}

    def verify(self, corpus: "Corpus", folder: Path, settings: Any, *, report: "Report") -> None:
        """Compare what the index keeps outside of its folder with what was written. Raises RetrievalError."""
        return None

    def convert(
        self, corpus: "Corpus", source: Path, settings: Any, folder: Path, *, report: "Report"
    ) -> dict[str, Any]:
        """Like `build`, from the files of another index: a folder of ours or a file made elsewhere."""
        raise RetrievalError(
            f"an index of `kind: {settings.kind}` is not made from another index", remedy="build it from the corpus"
        )


INDEX_KINDS: Registry[IndexKind] = Registry(
    "index kind",
    group="retrieval_server.backends",
    own={
        name: f"retrieval_server.backends.{name}.kind:KIND"
        for name in ("bm25", "dense", "hybrid", "lucene", "pgvector", "qdrant", "opensearch", "lancedb", "web")
    },
    kind=IndexKind,
    error=RetrievalError,
)


def kind_of(settings: IndexSettings) -> IndexKind:
    """The kind of these settings. Raises RetrievalError for one that is not registered."""
    return INDEX_KINDS[settings.kind]


def default_settings() -> IndexSettings:
    """The default settings of a new index."""
    return _registered({"kind": DEFAULT})


def _registered(values: Any) -> Any:
    return settings_of(INDEX_KINDS, values, field="kind")


AnyIndexSettings = Annotated[SerializeAsAny[IndexSettings], BeforeValidator(_registered)]
"""Settings of any registered kind, by their field `kind`."""
