"""OpenSearch and Elasticsearch as engines, over HTTP: BM25 over our terms, with k1 and b of the settings.

An index holds a document for each passage; the document's id is the row of the corpus. The analyzer of its field only
splits at white space, because the terms are already those of our analysis. Lucene keeps lengths in one byte, and some
releases multiply its score by k1 + 1: both leave the order as it is, except among passages of nearly equal scores.
"""

import json
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from retrieval_server.backends.base import Hits
from retrieval_server.backends.engines.http_json import HttpJson, HttpStore, in_requests
from retrieval_server.backends.engines.kind import EngineKind
from retrieval_server.backends.engines.settings import EngineSettings
from retrieval_server.backends.engines.store import Batch, Shape, Store
from retrieval_server.corpus import Report
from retrieval_server.errors import QueryError, RetrievalError, Unavailable
from retrieval_server.services import checked_url

KEY_VARIABLE = "OPENSEARCH_AUTHORIZATION"
MOST = 10_000  # index.max_result_window
_ANALYZER = {"terms": {"type": "custom", "tokenizer": "whitespace"}}


class OpenSearchSettings(EngineSettings, frozen=True):
    """An index in OpenSearch or Elasticsearch. `url`: `https://HOST:9200`.

    The environment variable OPENSEARCH_AUTHORIZATION holds the whole header: `Basic …` or `ApiKey …`.
    """

    kind: Literal["opensearch"] = "opensearch"
    search: Literal["bm25"] = "bm25"
    shards: int = Field(default=1, ge=1)
    replicas: int = Field(default=0, ge=0)

    built_with: ClassVar = ("shards",)

    _address = field_validator("url")(checked_url)


class _Index(HttpStore):
    def __init__(self, settings: OpenSearchSettings, shape: Shape) -> None:
        self._settings, self._shape = settings, shape
        http = HttpJson(
            "OpenSearch",
            settings.url,
            key_variable=KEY_VARIABLE,
            key_header="authorization",
            key_form="{}",
            timeout_s=settings.timeout_s,
        )
        super().__init__(http, f"/{shape.name}")

    def version(self) -> str:
        version = self._http.call("GET", "/")["version"]
        return f"{version.get('distribution', 'elasticsearch')} {version['number']}"

    # filling

    def _made(self) -> dict[str, Any]:
        bm25 = {"type": "BM25", "k1": self._settings.k1, "b": self._settings.b}
        return {
            "settings": {
                "number_of_shards": self._settings.shards,
                "number_of_replicas": self._settings.replicas,
                "refresh_interval": "-1",
                # A batch that is written again leaves deleted documents, which count as passages with a term.
                "merge.policy.expunge_deletes_allowed": 0,
                "analysis": {"analyzer": _ANALYZER},
                "similarity": {"default": bm25},
            },
            "mappings": {
                "dynamic": "strict",
                "properties": {
                    "id": {"type": "keyword", "index": False, "doc_values": False},
                    "terms": {"type": "text", "analyzer": "terms", "index_options": "freqs"},
                },
            },
        }

    def put(self, batch: Batch) -> None:
        for some in in_requests(self._documents(batch)):
            rows = ((json.dumps({"index": {"_id": row["number"]}}), json.dumps(row["kept"])) for row in some)
            answer = self._call("POST", "/_bulk", lines="".join(f"{one}\n{two}\n" for one, two in rows).encode())
            if answer["errors"]:
                failed = [item["index"] for item in answer["items"] if "error" in item["index"]]
                reason = f"OpenSearch did not keep {len(failed)} passages: {failed[0]['error']}"
                if any(item["status"] in (429, 503) for item in failed):
                    raise Unavailable(reason, remedy="see OpenSearch's log; a smaller `batch` needs less memory")
                raise RetrievalError(reason, remedy="see the message and OpenSearch's log")

    def _documents(self, batch: Batch) -> Iterable[Mapping[str, Any]]:
        assert batch.terms is not None
        for at, (id_, terms) in enumerate(zip(batch.ids, batch.terms, strict=True)):
            yield {"number": str(batch.start + at), "kept": {"id": id_, "terms": " ".join(terms)}}

    def finish(self, report: Report) -> None:
        self._call("POST", "/_refresh")
        if self._call("GET", "/_stats/docs")["_all"]["primaries"]["docs"]["deleted"]:
            self._call("POST", "/_forcemerge?only_expunge_deletes=true")
            self._call("POST", "/_refresh")

    # what it holds

    def count(self) -> int:
        if not self._is_there():
            raise RetrievalError(
                f"OpenSearch at {self._settings.url} has no index {self._shape.name}",
                remedy="build the index, or give the `url` and `name` that it was built with",
            )
        return int(self._call("GET", "/_count")["count"])

    def canonical(self, batch: Batch) -> list[bytes]:
        return [_described(int(row["number"]), row["kept"]) for row in self._documents(batch)]

    def held(self, start: int, end: int) -> list[bytes]:
        found = self._call("POST", "/_mget", {"ids": [str(row) for row in range(start, end)]})["docs"]
        return [_described(int(one["_id"]), one["_source"]) for one in found if one.get("found")]

    # searching

    def lexical(self, queries: Sequence[Counter[str]], topk: int) -> list[Hits]:
        lines = []
        for terms in queries:
            asked = {"match": {"terms": {"query": " ".join(terms.elements())}}}
            body = {"query": asked, "size": min(topk, MOST), "_source": False, "track_total_hits": False}
            lines += [{}, body]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        # Of several shards, each would count its own passages with a term.
        answers = self._call("POST", "/_msearch?search_type=dfs_query_then_fetch", lines=text.encode())["responses"]
        return [self._hits(answer) for answer in answers]

    def _hits(self, answer: Mapping[str, Any]) -> Hits:
        if "error" in answer:
            reason = f"OpenSearch refused the query: {json.dumps(answer['error'])[:300]}"
            raise QueryError(reason) if answer.get("status") == 400 else Unavailable(reason)
        if answer.get("timed_out") or answer["_shards"]["failed"]:
            raise Unavailable(f"OpenSearch searched only a part of {self._shape.name}", remedy="see OpenSearch's log")
        return [(int(hit["_id"]), float(hit["_score"])) for hit in answer["hits"]["hits"]]


def _described(row: int, kept: Mapping[str, Any]) -> bytes:
    return struct.pack(">q", row) + str(kept["id"]).encode() + b"\0" + str(kept["terms"]).encode()


class OpenSearchKind(EngineKind):
    """An index in OpenSearch or Elasticsearch, searched by words."""

    settings, format = OpenSearchSettings, 1

    def connect(self, settings: OpenSearchSettings, shape: Shape) -> Store:
        return _Index(settings, shape)

    def most(self, settings: OpenSearchSettings) -> int:
        return MOST


KIND = OpenSearchKind()
