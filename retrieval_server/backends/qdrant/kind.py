"""Qdrant as an engine, over its REST interface: dense vectors, BM25 as sparse vectors, quantization with re-scoring.

A collection holds a point for each passage; the point's id is the row of the corpus. The weights of terms are computed
here, from our analysis and a vocabulary in the index folder, so BM25 has Lucene's scores with any k1 and b.
"""

import struct
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from retrieval_server.backends.base import Hits
from retrieval_server.backends.engines.http_json import HttpJson, HttpStore, in_requests
from retrieval_server.backends.engines.kind import EngineKind
from retrieval_server.backends.engines.settings import EngineSettings
from retrieval_server.backends.engines.store import Batch, Shape, Store
from retrieval_server.backends.engines.vocabulary import Sparse
from retrieval_server.corpus import Report
from retrieval_server.errors import RetrievalError
from retrieval_server.services import checked_url

KEY_VARIABLE = "QDRANT_API_KEY"
_LOOK_S = 1.0
_QUANTIZATION = {
    "int8": {"scalar": {"type": "int8", "quantile": 0.99, "always_ram": True}},
    "binary": {"binary": {"always_ram": True}},
}


class QdrantSettings(EngineSettings, frozen=True):
    """A collection in Qdrant. `url`: `http://HOST:6333`; the key is in the environment variable QDRANT_API_KEY.

    `layout`: `exact` compares every vector, `hnsw` uses a graph. With `quantization` the search compares small copies
    of the vectors, and scores `oversampling` times as many passages again with the vectors (`rescore`).
    """

    kind: Literal["qdrant"] = "qdrant"
    layout: Literal["exact", "hnsw"] = "hnsw"
    vectors: Literal["float16", "float32"] = "float16"
    hnsw_links: int = Field(default=16, ge=2)
    ef_construction: int = Field(default=100, ge=4)
    quantization: Literal["none", "int8", "binary"] = "none"
    on_disk: bool = Field(default=False, description="keep vectors on the disk and not in Qdrant's memory")
    shards: int = Field(default=1, ge=1, description="shards of the collection, over the nodes of a cluster")
    replicas: int = Field(default=1, ge=1, description="copies of each shard")
    # used only by the search
    ef_search: int = Field(default=128, ge=1)
    rescore: bool = True
    oversampling: float = Field(default=8.0, ge=1)

    built_with: ClassVar = (
        *("layout", "vectors", "hnsw_links", "ef_construction", "quantization", "on_disk", "shards", "replicas"),
    )
    searched_with: ClassVar = ("ef_search", "rescore", "oversampling")
    of_vectors: ClassVar = (
        *("layout", "vectors", "hnsw_links", "ef_construction", "quantization"),
        *searched_with,
    )

    def unused(self) -> dict[str, str]:
        found: dict[str, str] = {}
        if self.quantization == "none":
            found = dict.fromkeys(("rescore", "oversampling"), "quantization: none")
        if self.layout == "exact":  # Qdrant's exact search never reads the small copies
            of_graph = ("hnsw_links", "ef_construction", "ef_search", "quantization", "rescore", "oversampling")
            found = dict.fromkeys(of_graph, "layout: exact")
        return found | super().unused()

    _address = field_validator("url")(checked_url)


class _Collection(HttpStore):
    def __init__(self, settings: QdrantSettings, shape: Shape) -> None:
        self._settings, self._shape = settings, shape
        http = HttpJson(
            "Qdrant",
            settings.url,
            key_variable=KEY_VARIABLE,
            key_header="api-key",
            key_form="{}",
            timeout_s=settings.timeout_s,
        )
        super().__init__(http, f"/collections/{shape.name}")

    def _call(self, method: str, path: str, body: Any = None, *, lines: bytes | None = None) -> Any:
        return super()._call(method, path, body, lines=lines)["result"]

    def version(self) -> str:
        return f"Qdrant {self._http.call('GET', '/').get('version', 'of an unknown version')}"

    # filling

    def _made(self) -> dict[str, Any]:
        settings = self._settings
        made: dict[str, Any] = {"shard_number": settings.shards, "replication_factor": settings.replicas}
        if settings.dense:
            links = 0 if settings.layout == "exact" else settings.hnsw_links
            made["vectors"] = {
                "dense": {
                    "size": self._shape.dimension,
                    "distance": "Dot",
                    "datatype": settings.vectors,
                    "on_disk": settings.on_disk,
                    "hnsw_config": {"m": links, "ef_construct": settings.ef_construction},
                    "quantization_config": _QUANTIZATION.get(settings.quantization),
                }
            }
        else:
            made["vectors"] = {}
        if settings.lexical:
            made["sparse_vectors"] = {"sparse": {"index": {"on_disk": settings.on_disk}}}
        return made

    def put(self, batch: Batch) -> None:
        points: list[dict[str, Any]] = []
        for at, id_ in enumerate(batch.ids):
            vector: dict[str, Any] = {}
            if batch.vectors is not None:
                vector["dense"] = self._kept(batch.vectors[at]).tolist()
            if batch.terms is not None and batch.terms[at]:
                indices, values = self._weights(batch.terms[at])
                vector["sparse"] = {"indices": indices, "values": values}
            points.append({"id": batch.start + at, "vector": vector, "payload": {"id": id_}})
        for some in in_requests(points):
            self._call("PUT", "/points?wait=true", {"points": some})

    def _kept(self, numbers: Any) -> Any:
        """float32, with the values that the collection keeps."""
        return numbers.astype(self._settings.vectors).astype("float32")

    def _weights(self, terms: Sequence[str]) -> Sparse:
        """The weights in float32, as the collection keeps them."""
        assert self._shape.vocabulary is not None
        indices, values = self._shape.vocabulary.passage(terms, k1=self._settings.k1, b=self._settings.b)
        return indices, list(struct.unpack(f"{len(values)}f", struct.pack(f"{len(values)}f", *values)))

    def finish(self, report: Report) -> None:
        while True:  # the graph is built in the background
            state = self._call("GET", "")
            if state["status"] in ("green", "grey"):  # grey: after a restart, until something is written
                return
            if state["status"] == "red":
                raise RetrievalError(
                    f"Qdrant can not optimise the collection {self._shape.name}: {state.get('optimizer_status')}",
                    remedy="see Qdrant's log",
                )
            report("waiting for Qdrant's index", state.get("indexed_vectors_count") or 0, self._shape.passages)
            time.sleep(_LOOK_S)

    # what it holds

    def count(self) -> int:
        if not self._is_there():
            raise RetrievalError(
                f"Qdrant at {self._settings.url} has no collection {self._shape.name}",
                remedy="build the index, or give the `url` and `name` that it was built with",
            )
        return int(self._call("POST", "/points/count", {"exact": True})["count"])

    def canonical(self, batch: Batch) -> list[bytes]:
        return [
            _described(
                batch.start + at,
                id_,
                None if batch.vectors is None else self._kept(batch.vectors[at]).tolist(),
                None if batch.terms is None else self._weights(batch.terms[at]),
            )
            for at, id_ in enumerate(batch.ids)
        ]

    def held(self, start: int, end: int) -> list[bytes]:
        asked = {"ids": list(range(start, end)), "with_vector": True, "with_payload": True}
        points = sorted(self._call("POST", "/points", asked), key=lambda point: point["id"])
        return [
            _described(
                point["id"],
                point["payload"].get("id", ""),
                point["vector"].get("dense"),
                _sorted(point["vector"].get("sparse")) if self._settings.lexical else None,
            )
            for point in points
        ]

    # searching

    def dense(self, vectors: Any, topk: int) -> list[Hits]:
        params: dict[str, Any] = {"exact": True} if self._settings.layout == "exact" else {}
        if self._settings.layout == "hnsw":
            params["hnsw_ef"] = max(self._settings.ef_search, topk)
        if self._settings.quantization != "none":
            params["quantization"] = {"rescore": self._settings.rescore, "oversampling": self._settings.oversampling}
        return self._found([{"query": vector, "using": "dense", "params": params} for vector in vectors.tolist()], topk)

    def lexical(self, queries: Sequence[Counter[str]], topk: int) -> list[Hits]:
        assert self._shape.vocabulary is not None
        weighed = [self._shape.vocabulary.query(terms) for terms in queries]
        known = [at for at, (indices, _) in enumerate(weighed) if indices]
        asked = [{"query": {"indices": weighed[at][0], "values": weighed[at][1]}, "using": "sparse"} for at in known]
        found: list[Hits] = [[] for _ in queries]
        for at, hits in zip(known, self._found(asked, topk), strict=True):
            found[at] = [hit for hit in hits if hit[1] > 0]
        return found

    def _found(self, searches: Sequence[dict[str, Any]], topk: int) -> list[Hits]:
        if not searches:
            return []
        asked = {"searches": [{**search, "limit": topk, "with_payload": False} for search in searches]}
        answers = self._call("POST", "/points/query/batch", asked)
        return [[(point["id"], float(point["score"])) for point in answer["points"]] for answer in answers]


def _sorted(sparse: dict[str, Any] | None) -> Sparse:
    pairs = sorted(zip(sparse["indices"], sparse["values"], strict=True)) if sparse else []
    return [number for number, _ in pairs], [value for _, value in pairs]


def _described(row: int, id_: str, dense: Sequence[float] | None, sparse: Sparse | None) -> bytes:
    described = struct.pack(">q", row) + id_.encode() + b"\0"
    if dense is not None:
        described += struct.pack(f"<{len(dense)}f", *dense)
    if sparse is not None:
        indices, values = sparse
        described += struct.pack(f"<{len(indices)}I{len(values)}f", *indices, *values)
    return described


class QdrantKind(EngineKind):
    """A collection in Qdrant; a cluster shares it by shards and replicas."""

    settings, format, weighs_terms = QdrantSettings, 1, True

    def connect(self, settings: QdrantSettings, shape: Shape) -> Store:
        return _Collection(settings, shape)


KIND = QdrantKind()
