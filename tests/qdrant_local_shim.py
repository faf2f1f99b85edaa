"""Not a Qdrant server: the client package's local mode, which is exact Python, behind the few REST routes that we use.

It reads requests with the official client's models, so a field that the real interface does not have is refused. It
ignores the settings of graphs and quantization, shards and replicas.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from tests.restartable import Restartable

KEY = "a-key-of-qdrant"


class QdrantLocalShim(Restartable):
    """The shim on a port of its own. `stop` and `start` take it away and bring it back, with its collections."""

    def __init__(self) -> None:
        from qdrant_client import QdrantClient

        self.client = QdrantClient(":memory:")
        super().__init__(_app(self.client))


@contextmanager
def running_qdrant_local_shim() -> Iterator[QdrantLocalShim]:
    with QdrantLocalShim().running() as shim:
        yield shim


def _app(client: Any) -> FastAPI:
    from qdrant_client.http import models

    lock = threading.Lock()
    app = FastAPI()

    @app.middleware("http")
    async def keyed(request: Request, call: Any) -> Any:
        if request.headers.get("api-key") != KEY:
            return JSONResponse({"status": {"error": "Must provide an API key"}}, status_code=401)
        return await call(request)

    def answer(result: Any) -> JSONResponse:
        return JSONResponse({"result": result, "status": "ok", "time": 0.0})

    def absent(name: str) -> JSONResponse | None:
        if client.collection_exists(name):
            return None
        error = f"Not found: Collection `{name}` doesn't exist!"
        return JSONResponse({"status": {"error": error}}, status_code=404)

    @app.get("/")
    def root() -> dict[str, str]:
        return {"title": "the client's local mode", "version": "in the client"}

    @app.get("/collections/{name}")
    def info(name: str) -> JSONResponse:
        return absent(name) or answer({"status": "green", "indexed_vectors_count": 0})

    @app.put("/collections/{name}")
    async def create(name: str, request: Request) -> JSONResponse:
        made = models.CreateCollection.model_validate_json(await request.body())
        with lock:
            client.create_collection(name, vectors_config=made.vectors, sparse_vectors_config=made.sparse_vectors)
        return answer(True)

    @app.delete("/collections/{name}")
    def delete(name: str) -> JSONResponse:
        with lock:
            return answer(client.delete_collection(name))

    @app.put("/collections/{name}/points")
    async def upsert(name: str, request: Request) -> JSONResponse:
        points = models.PointsList.model_validate_json(await request.body()).points
        with lock:
            client.upsert(name, points)
        return answer({"status": "completed"})

    @app.post("/collections/{name}/points/count")
    async def count(name: str, request: Request) -> JSONResponse:
        models.CountRequest.model_validate_json(await request.body())
        return absent(name) or answer({"count": client.count(name).count})

    @app.post("/collections/{name}/points")
    async def retrieve(name: str, request: Request) -> JSONResponse:
        asked = models.PointRequest.model_validate_json(await request.body())
        with lock:
            found = client.retrieve(name, asked.ids, with_payload=True, with_vectors=True)
        return absent(name) or answer([point.model_dump(mode="json") for point in found])

    @app.post("/collections/{name}/points/query/batch")
    async def query(name: str, request: Request) -> JSONResponse:
        searches = models.QueryRequestBatch.model_validate_json(await request.body()).searches
        if (missing := absent(name)) is not None:
            return missing
        with lock:
            found = client.query_batch_points(name, searches)
        return answer([one.model_dump(mode="json") for one in found])

    return app
