"""Registers vectors of an encoder as a kind of index: building, opening, and the resources that they need."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retrieval_server.backends.base import Backend
from retrieval_server.backends.dense.building import FAISS_FILE, existing_vectors, from_vectors
from retrieval_server.backends.dense.encoders import ENCODERS, open_encoder
from retrieval_server.backends.dense.index import Dense, Engine
from retrieval_server.backends.dense.plan import needs, table
from retrieval_server.backends.dense.settings import DenseSettings
from retrieval_server.backends.dense.torch_exact import search_bytes
from retrieval_server.backends.dense.vectors import RECORD, open_vectors
from retrieval_server.corpus import Corpus, Report
from retrieval_server.errors import RetrievalError
from retrieval_server.index_kinds import IndexKind, IndexNeed, IndexPlan

QUERIES_AT_ONCE = 512  # `max_batch_queries` of the server
DIMENSION, ENCODER_PARAMETERS = 768, 109_482_240  # E5-base


class DenseKind(IndexKind):
    """Passages and queries as vectors. Encoding a large corpus takes hours, so a killed build continues."""

    settings, format, progress = DenseSettings, 2, (RECORD,)
    ready_within_s = 3600.0  # tens of GB are read from the disk to a GPU
    to_make_smaller = (
        "set retriever.index.torch_dtype=int8 (half of it), or search on the CPU: retriever.index.engine=faiss with a "
        "compressed layout (`s3-agent index plan --passages N` compares them)"
    )

    def load(self, corpus: Corpus, folder: Path, settings: DenseSettings, *, report: Report) -> Backend:
        engine, dimension = _engine(corpus, folder, settings, report)
        report("loading the encoder", 0, 0)
        encoder = open_encoder(settings.encoder)
        if encoder.dimension != dimension:
            raise RetrievalError(
                f"the encoder {settings.encoder.model} makes vectors of {encoder.dimension} numbers, the index "
                f"holds {dimension}",
                remedy="give the encoder that the index was built with",
            )
        return Dense(encoder, engine, settings)

    def build(self, corpus: Corpus, settings: DenseSettings, folder: Path, *, report: Report) -> dict[str, Any]:
        encoder = open_encoder(settings.encoder)

        def encode(start: int, end: int) -> Any:
            return encoder.passages([corpus[row].contents for row in range(start, end)])

        return from_vectors(corpus, settings, rows=encode, dimension=encoder.dimension, report=report)(folder)

    def convert(
        self, corpus: Corpus, source: Path, settings: DenseSettings, folder: Path, *, report: Report
    ) -> dict[str, Any]:
        """Build another layout from vectors that exist already."""
        rows, dimension = existing_vectors(corpus, source, report=report)
        return from_vectors(corpus, settings, rows=rows, dimension=dimension, report=report)(folder)

    def foreign(self, settings: DenseSettings) -> Path | None:
        return settings.file

    def models(self, settings: DenseSettings) -> Mapping[str, str]:
        model = ENCODERS[settings.encoder.kind].model(settings.encoder)
        return {} if model is None else {"encoder": model}

    def plan(self, *, passages: int, dimension: int, candidates: int | None) -> IndexPlan:
        default: int = DenseSettings.model_fields["candidates"].default
        return table(passages=passages, dimension=dimension, candidates=candidates or default)

    def need(self, settings: DenseSettings, *, passages: int, dimension: int, cards: int) -> IndexNeed:
        ram, disk = _host_bytes(settings, passages=passages, dimension=dimension)
        return IndexNeed(ram, disk, _card_bytes(settings, passages=passages, dimension=dimension, cards=cards))


def _engine(corpus: Corpus, folder: Path, settings: DenseSettings, report: Report) -> tuple[Engine, int]:
    if settings.engine == "torch":
        from retrieval_server.backends.dense.torch_exact import TorchEngine

        vectors = open_vectors(folder)
        return TorchEngine(vectors, settings), vectors.shape[1]
    from retrieval_server.backends.dense.faiss_index import FaissEngine, read

    if settings.file is not None:
        from retrieval_server.backends.dense.foreign_faiss import ForeignIndex

        foreign = ForeignIndex(read(settings.file), corpus, settings.file, report=report)
        return FaissEngine(foreign.index, settings, rows=foreign.rows), foreign.index.d
    index = read(folder / FAISS_FILE)
    return FaissEngine(index, settings, vectors=open_vectors(folder)), index.d


def index_bytes(settings: DenseSettings, *, passages: int, dimension: int, cards: int) -> int:
    """Bytes of the vectors on one GPU: all of them with torch, a shard with FAISS."""
    if settings.engine == "faiss_gpu":
        return -(-passages * dimension * 2 // max(1, cards))
    width = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}[settings.torch_dtype]
    return passages * (dimension * width + (4 if settings.torch_dtype == "int8" else 0))


def _card_bytes(settings: DenseSettings, *, passages: int, dimension: int, cards: int) -> dict[str, int]:
    found: dict[str, int] = {}
    if settings.engine == "faiss_gpu" or (settings.engine == "torch" and settings.torch_device.startswith("cuda")):
        found["index"] = index_bytes(settings, passages=passages, dimension=dimension, cards=cards)
        batch = search_bytes(settings, queries=QUERIES_AT_ONCE, passages=passages, dimension=dimension)
        found["scores of a batch"] = batch
    device, width = settings.encoder.placed()
    if device.startswith("cuda"):
        found["encoder"] = ENCODER_PARAMETERS * width
        found["encoding a batch"] = 16384 * DIMENSION * (8 * width + 4)
    return found


def _host_bytes(settings: DenseSettings, *, passages: int, dimension: int) -> tuple[int, int]:
    if settings.engine == "torch":
        stored = passages * dimension * (2 if settings.vectors == "float16" else 4)
        on_host = index_bytes(settings, passages=passages, dimension=dimension, cards=1)
        return (on_host if settings.torch_device == "cpu" else 0), stored
    layouts = {need.kind: need for need in needs(passages=passages, dimension=dimension)}
    if (need := layouts.get(settings.layout)) is None:
        return 0, passages * dimension * 2
    return (0 if settings.engine == "faiss_gpu" else int(need.resident)), int(need.disk)


KIND = DenseKind()
