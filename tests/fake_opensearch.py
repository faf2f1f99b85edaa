"""A fake of OpenSearch, written here: no release of OpenSearch or Elasticsearch runs in the tests.

It keeps documents in memory, answers the routes that we use in the shape of the published interface, and refuses fields
that it does not know. It scores with Lucene's formula and exact lengths, so it says nothing about speed.
"""

import json
import math
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from tests.restartable import Restartable

AUTHORIZATION = "ApiKey a-key-of-the-fake"
MOST_TERMS = 1024


class _FakeIndex:
    def __init__(self, made: dict[str, Any]) -> None:
        similarity = made["settings"]["similarity"]["default"]
        assert similarity["type"] == "BM25" and made["mappings"]["dynamic"] == "strict"
        assert made["settings"]["analysis"]["analyzer"]["terms"]["tokenizer"] == "whitespace"
        self.fields = set(made["mappings"]["properties"])
        self.k1, self.b = similarity["k1"], similarity["b"]
        self.documents: dict[str, dict[str, Any]] = {}
        self.visible: dict[str, Counter[str]] = {}

    def refresh(self) -> None:
        """Documents are found after a refresh only, as the real index has `refresh_interval: -1`."""
        self.visible = {row: Counter(kept["terms"].split()) for row, kept in self.documents.items()}

    def search(self, query: str, size: int) -> list[dict[str, Any]]:
        lengths = {row: sum(terms.values()) for row, terms in self.visible.items()}
        average = sum(lengths.values()) / len(lengths)
        scores: Counter[str] = Counter()
        for term, wanted in Counter(query.split()).items():
            having = [row for row, terms in self.visible.items() if term in terms]
            rarity = math.log(1 + (len(lengths) - len(having) + 0.5) / (len(having) + 0.5))
            for row in having:
                found = self.visible[row][term]
                norm = self.k1 * (1 - self.b + self.b * lengths[row] / average)
                scores[row] += wanted * rarity * found / (found + norm)
        return [{"_id": row, "_score": score} for row, score in scores.most_common(size)]


class FakeOpenSearch(Restartable):
    """The fake on a port of its own. `stop` and `start` take it away and bring it back, with its indexes."""

    def __init__(self) -> None:
        self.indexes: dict[str, _FakeIndex] = {}
        super().__init__(_app(self.indexes))


@contextmanager
def running_fake_opensearch() -> Iterator[FakeOpenSearch]:
    with FakeOpenSearch().running() as fake:
        yield fake


def _app(indexes: dict[str, _FakeIndex]) -> FastAPI:
    lock, app = threading.Lock(), FastAPI()

    @app.middleware("http")
    async def guarded(request: Request, call: Any) -> Any:
        if request.headers.get("authorization") != AUTHORIZATION:
            return JSONResponse({"error": {"type": "security_exception"}, "status": 401}, 401)
        name = request.url.path.split("/")[1]
        if name and name not in indexes and request.method != "PUT":
            error = {"type": "index_not_found_exception", "reason": f"no such index [{name}]"}
            return JSONResponse({"error": error, "status": 404}, 404)
        with lock:
            return await call(request)

    @app.get("/")
    async def root() -> Any:
        return {"version": {"distribution": "fake-opensearch", "number": "0"}}

    @app.get("/{name}")
    async def described(name: str) -> Any:
        return {name: {"mappings": {}}}

    @app.put("/{name}")
    async def create(name: str, request: Request) -> Any:
        indexes[name] = _FakeIndex(await request.json())
        return {"acknowledged": True, "index": name}

    @app.delete("/{name}")
    async def delete(name: str) -> Any:
        del indexes[name]
        return {"acknowledged": True}

    @app.post("/{name}/_bulk")
    async def bulk(name: str, request: Request) -> Any:
        lines = [json.loads(line) for line in (await request.body()).splitlines()]
        items: list[Any] = []
        for action, kept in zip(lines[::2], lines[1::2], strict=True):
            [(operation, about)] = action.items()
            assert operation == "index"
            item: dict[str, Any] = {"_id": about["_id"], "status": 201}
            if set(kept) - indexes[name].fields:
                item |= {"status": 400, "error": {"type": "strict_dynamic_mapping_exception"}}
            else:
                indexes[name].documents[about["_id"]] = kept
            items.append({"index": item})
        return {"errors": any("error" in item["index"] for item in items), "items": items}

    @app.post("/{name}/_refresh")
    async def refresh(name: str) -> Any:
        indexes[name].refresh()
        return {"_shards": {"failed": 0}}

    @app.get("/{name}/_stats/docs")
    async def stats(name: str) -> Any:
        return {"_all": {"primaries": {"docs": {"count": len(indexes[name].visible), "deleted": 0}}}}

    @app.get("/{name}/_count")
    async def count(name: str) -> Any:
        return {"count": len(indexes[name].visible), "_shards": {"failed": 0}}

    @app.post("/{name}/_mget")
    async def mget(name: str, request: Request) -> Any:
        held, ids = indexes[name].documents, (await request.json())["ids"]
        found = [
            {"_id": row, "found": True, "_source": held[row]} if row in held else {"_id": row, "found": False}
            for row in ids
        ]
        return {"docs": found}

    @app.post("/{name}/_msearch")
    async def msearch(name: str, request: Request) -> Any:
        assert request.query_params["search_type"] == "dfs_query_then_fetch"
        lines = [json.loads(line) for line in (await request.body()).splitlines()]
        answers: list[Any] = []
        for body in lines[1::2]:
            query = body["query"]["match"]["terms"]["query"]
            if len(set(query.split())) > MOST_TERMS:
                answers.append({"error": {"type": "too_many_clauses"}, "status": 400})
            else:
                hits = indexes[name].search(query, body["size"])
                answers.append({"timed_out": False, "_shards": {"failed": 0}, "hits": {"hits": hits}, "status": 200})
        return {"responses": answers}

    return app
