"""The settings of a dense index: its encoder, layout and engine."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from retrieval_server.backends.dense.encoders import MOST_TOKENS, AnyEncoderSettings, EncoderBase, encoder_place
from retrieval_server.index_kinds import IndexSettings

_OF_VECTORS = (
    *("model", "pooling", "normalize", "query_prefix", "passage_prefix", "max_tokens"),
    *("dimensions", "end_token"),
)


class EncoderSettings(EncoderBase, frozen=True):
    """How a transformers model encodes texts. Nothing is guessed from its name; remote code is never run.

    `pooling: last` takes the state of the last token (Qwen3-Embedding); `end_token` is appended to each text that does
    not end with it. `onnx` is a file with the same model for ONNX Runtime, in the model's folder or repository.
    """

    kind: Literal["transformers"] = "transformers"
    pooling: Literal["mean", "cls", "last"] = "mean"
    end_token: str | None = None
    max_tokens: int = Field(default=MOST_TOKENS, ge=1)
    device: str = "cpu"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    onnx: str | None = None

    @classmethod
    def e5(cls, model: str = "intfloat/e5-base-v2", **others: Any) -> Self:
        """The E5 family's prefixes, mean pooling, unit length, 256 tokens."""
        return cls(model=model, query_prefix="query: ", passage_prefix="passage: ", **others)

    def identity(self) -> dict[str, Any]:
        """The settings that vectors depend on, without where and in which type the model is computed."""
        described = {name: getattr(self, name) for name in _OF_VECTORS}  # in this order: fingerprints hold it as text
        return {name: value for name, value in described.items() if value is not None}

    def answers(self) -> dict[str, Any]:
        changed = {"dtype": self.dtype} if self.dtype != "float32" else {}
        return self.identity() | changed | ({"onnx": self.onnx} if self.onnx is not None else {})

    def longest(self) -> int:
        return self.max_tokens

    def placed(self) -> tuple[str, int]:
        """The device, and the bytes of a number on it."""
        return self.device, 4 if self.dtype == "float32" else 2


Layout = Literal["flat", "hnsw", "ivf_flat", "ivf_sq8", "ivf_pq", "ivf_rabitq", "sq8", "pq", "rabitq"]


COMPRESSED = ("ivf_sq8", "ivf_pq", "ivf_rabitq", "sq8", "pq", "rabitq")  # their scores are not those of the vectors


class DenseSettings(IndexSettings, frozen=True):
    """Vectors of an encoder, searched by inner product.

    `engine`: `faiss` (CPU), `faiss_gpu` (sharded over all visible GPUs, fp16), or `torch` (exact, on `device`).
    Compressed layouts find `candidates` passages, which are scored again from the fp16 vectors on disk.
    `file` is an existing FAISS index (`e5_Flat.index`), opened unchanged.
    """

    kind: Literal["dense"] = "dense"
    encoder: AnyEncoderSettings
    engine: Literal["faiss", "faiss_gpu", "torch"] = "faiss"
    layout: Layout = "flat"
    vectors: Literal["float16", "float32"] = "float16"
    file: Path | None = None
    lists: int | None = Field(default=None, ge=1, description="number of IVF lists; default: about 4 sqrt(passages)")
    pq_bytes: int | None = Field(default=None, ge=1, description="PQ bytes per vector; default: dimension / 8")
    hnsw_links: int = Field(default=32, ge=4)
    ef_construction: int = Field(default=200, ge=8)
    # used only by the search
    probes: int = Field(default=64, ge=1)
    ef_search: int = Field(default=256, ge=1)
    candidates: int = Field(default=400, ge=0, description="re-ranked from the vectors on disk; 0: no re-ranking")
    torch_device: str = "cpu"
    torch_dtype: Literal["float32", "float16", "bfloat16", "int8"] = "float32"
    chunk: int | None = Field(
        default=None, ge=1, description="vectors per step of the torch search; default: by the number of queries"
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
        """Raise ValueError if `topk` exceeds the number of re-ranked candidates of a compressed layout."""
        if self.file is None and self.layout in COMPRESSED and 0 < self.candidates < topk:
            raise ValueError(
                f"`candidates` is {self.candidates}, below the {topk} requested passages: raise it, or set it "
                "to 0 for the index's own order"
            )

    def identity(self) -> dict[str, Any]:
        """The settings that an index is built with, without the engine: both engines read a flat index."""
        built = self.model_dump(
            include={"layout", "vectors", "lists", "pq_bytes", "hnsw_links", "ef_construction"}, mode="json"
        )
        return {"encoder": self.encoder.identity(), **built}

    def answers(self) -> dict[str, Any]:
        """The settings that answers depend on."""
        searched = self.model_dump(include={"engine", "probes", "ef_search", "candidates", "torch_dtype"}, mode="json")
        return self.identity() | {"encoder": self.encoder.answers()} | searched

    def place(self) -> dict[str, Any]:
        """Where the encoder is, if it is a service, and an existing index, if it is a part of another."""
        return encoder_place(self.encoder) | ({"file": str(self.file.absolute())} if self.file else {})
