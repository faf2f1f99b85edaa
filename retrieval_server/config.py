"""The settings of the server, of its limits, and of each kind of index."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from retrieval_server.errors import RetrievalError


class HttpSettings(BaseModel):
    """Where to listen and what clients may ask for. Each field is an option of the command line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=3000, ge=0, le=65535, description="port to listen on")
    topk: int = Field(default=3, ge=1, description="passages a query when the request names none")
    # The limits are above what the original clients send: Search-R1's asks 2,560 queries at once and never again.
    max_topk: int = Field(default=1000, ge=1, description="passages a query at most")
    max_queries: int = Field(default=16384, ge=1, description="queries in a request at most")
    max_query_characters: int = Field(default=8192, ge=1, description="characters that are read of a query")
    max_body_bytes: int = Field(default=64 << 20, ge=1, description="bytes in a request's body at most")
    max_queued: int = Field(default=65536, ge=1, description="queries that may wait for a search; others get 429")
    max_batch_queries: int = Field(default=512, ge=1, description="queries searched together at most; 1: no batching")
    max_batch_tokens: int = Field(default=16384, ge=1, description="tokens in a batch at most")
    cache_mb: float = Field(default=64.0, ge=0, description="memory for the cache of queries, in MB; 0: no cache")
    request_s: float = Field(default=30.0, gt=0, description="seconds that a request may take to arrive")
    shutdown_s: float = Field(default=30.0, ge=0, description="seconds that accepted requests have after SIGTERM")


class Bm25Settings(BaseModel):
    """BM25 with Lucene's formula and English analysis. `boolean`: AND, OR, NOT, quotes count (docs/originals.md#e1)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["bm25"] = "bm25"
    k1: float = Field(default=0.9, ge=0)
    b: float = Field(default=0.4, ge=0, le=1)
    stemmer: str = "porter"
    stopwords: str = "english"
    boolean: bool = False

    def identity(self) -> dict[str, Any]:
        """The settings that an index is built with."""
        return self.model_dump(exclude={"kind", "boolean"})

    def answers(self) -> dict[str, Any]:
        """The settings that answers depend on. Boolean parsing is named only when it is on."""
        return self.identity() | ({"boolean": True} if self.boolean else {})


class LuceneSettings(BaseModel):
    """An existing Lucene index, searched by pyserini as Anserini's SimpleSearcher does. Needs Java and pyserini."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["lucene"] = "lucene"
    path: Path
    k1: float = Field(default=0.9, ge=0)
    b: float = Field(default=0.4, ge=0, le=1)

    def identity(self) -> dict[str, Any]:
        """The settings that an index is built with."""
        return {"path": str(self.path)}

    def answers(self) -> dict[str, Any]:
        """The settings that answers depend on."""
        return self.model_dump(mode="json", exclude={"kind"})


class EncoderSettings(BaseModel):
    """How a transformers model makes vectors of texts. Nothing is guessed from its name; remote code is never run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    pooling: Literal["mean", "cls"] = "mean"
    normalize: bool = True
    query_prefix: str = ""
    passage_prefix: str = ""
    max_tokens: int = Field(default=256, ge=1)
    device: str = "cpu"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"

    @classmethod
    def e5(cls, model: str = "intfloat/e5-base-v2", **others: Any) -> Self:
        """The E5 family's prefixes, mean pooling, unit length, 256 tokens."""
        return cls(model=model, query_prefix="query: ", passage_prefix="passage: ", **others)

    def identity(self) -> dict[str, Any]:
        """What vectors depend on; where they are computed is left out."""
        return self.model_dump(exclude={"device", "dtype"})


Layout = Literal["flat", "hnsw", "ivf_flat", "ivf_sq8", "ivf_pq", "ivf_rabitq", "sq8", "pq", "rabitq"]


COMPRESSED = ("ivf_sq8", "ivf_pq", "ivf_rabitq", "sq8", "pq", "rabitq")  # their scores are not those of the vectors


class DenseSettings(BaseModel):
    """Vectors of an encoder, searched by inner product.

    `engine`: `faiss` (CPU), `faiss_gpu` (sharded over all visible GPUs, fp16), or `torch` (exact, on `device`).
    Compressed layouts find `candidates` passages, which are scored again from the fp16 vectors on disk.
    `file` is an existing FAISS index (`e5_Flat.index`), opened as it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["dense"] = "dense"
    encoder: EncoderSettings
    engine: Literal["faiss", "faiss_gpu", "torch"] = "faiss"
    layout: Layout = "flat"
    vectors: Literal["float16", "float32"] = "float16"
    file: Path | None = None
    lists: int | None = Field(default=None, ge=1, description="IVF lists; default: about 4 sqrt(passages)")
    pq_bytes: int | None = Field(default=None, ge=1, description="PQ bytes a vector; default: dimension / 8")
    hnsw_links: int = Field(default=32, ge=4)
    ef_construction: int = Field(default=200, ge=8)
    # of the search alone
    probes: int = Field(default=64, ge=1)
    ef_search: int = Field(default=256, ge=1)
    candidates: int = Field(default=400, ge=0, description="re-ranked from the vectors on disk; 0: no re-ranking")
    torch_device: str = "cpu"
    torch_dtype: Literal["float32", "float16", "bfloat16", "int8"] = "float32"
    chunk: int | None = Field(
        default=None, ge=1, description="vectors a step of the torch search; default: by the number of queries"
    )

    @model_validator(mode="after")
    def _torch_is_flat(self) -> Self:
        if self.engine == "torch" and self.layout != "flat":
            raise ValueError("the torch engine searches exactly: its layout is flat")
        if self.engine == "torch" and self.file is not None:
            raise ValueError(
                "the torch engine reads no FAISS file: leave `file` out, after `python -m retrieval_server index "
                "convert`, or set `engine: faiss`"
            )
        return self

    def check_topk(self, topk: int) -> None:
        """Raise ValueError when so many passages are wanted of a compressed layout that fewer are re-ranked."""
        if self.file is None and self.layout in COMPRESSED and 0 < self.candidates < topk:
            raise ValueError(
                f"`candidates` is {self.candidates}, below the {topk} passages that are asked for: raise it, or set it "
                "to 0 for the index's own order"
            )

    def identity(self) -> dict[str, Any]:
        """The settings that an index is built with; the engine is not one, both read a flat index."""
        built = self.model_dump(
            include={"layout", "vectors", "lists", "pq_bytes", "hnsw_links", "ef_construction"}, mode="json"
        )
        return {"encoder": self.encoder.identity(), **built}

    def answers(self) -> dict[str, Any]:
        """The settings that answers depend on."""
        searched = self.model_dump(include={"engine", "probes", "ef_search", "candidates", "torch_dtype"}, mode="json")
        return self.identity() | searched


IndexSettings = Annotated[Bm25Settings | DenseSettings | LuceneSettings, Field(discriminator="kind")]
index_settings: TypeAdapter[Bm25Settings | DenseSettings | LuceneSettings] = TypeAdapter(IndexSettings)


def read_index_settings(path: Path) -> Bm25Settings | DenseSettings | LuceneSettings:
    """The settings in a YAML or JSON file, `kind: bm25 | dense | lucene`. Raises RetrievalError."""
    try:
        return index_settings.validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError, ValidationError) as cause:
        raise RetrievalError(
            f"{path} can not be used: {cause}", remedy="give `kind: bm25`, `dense` or `lucene` and its fields"
        ) from cause


class ServerSettings(HttpSettings):
    """One server: its corpus, its index, its limits. Without `backend`, the index's manifest says what it is."""

    corpus: Path
    index: Path
    backend: IndexSettings | None = None

    @model_validator(mode="after")
    def _enough_candidates(self) -> Self:
        if isinstance(self.backend, DenseSettings):
            self.backend.check_topk(self.topk)
        return self
