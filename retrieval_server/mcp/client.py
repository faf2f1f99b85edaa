"""The retrieval server's routes as functions for tools, in the server itself and in a process in front of it."""

from typing import Any
from urllib.parse import quote

import httpx
from mcp.server.mcpserver.exceptions import ToolError

from retrieval_server.schemas import Document, GrepRequest, GrepResponse, Hit
from retrieval_server.services import async_client

TIMEOUT_S = 120.0


def http_client(url: str, key: str | None) -> httpx.AsyncClient:
    """A client of the server at `url`."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return async_client(url, headers=headers, timeout_s=TIMEOUT_S)


class Routes:
    """The routes behind an HTTP client of the server. Every error becomes a ToolError, whose text the model reads."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def search(self, query: str, *, topk: int | None) -> list[Hit]:
        """The best passages, best first. Raises ToolError."""
        answer = await self._call("POST", "/retrieve", json={"queries": [query], "topk": topk, "return_scores": True})
        return [Hit.model_validate(hit) for hit in answer["result"][0]]

    async def document(self, docid: str) -> Document:
        """The passage with that id. Raises ToolError, also if there is none."""
        return Document.model_validate(await self._call("GET", f"/documents/{quote(docid, safe='')}"))

    async def grep(self, asked: GrepRequest) -> GrepResponse:
        """The passages that match a pattern. Raises ToolError."""
        return GrepResponse.model_validate(await self._call("POST", "/grep", json=asked.model_dump()))

    async def manifest(self) -> dict[str, Any]:
        """The index's manifest. Raises ToolError."""
        return await self._call("GET", "/readyz")

    async def _call(self, method: str, path: str, **options: Any) -> Any:
        try:
            answer = await self._client.request(method, path, **options)
            body = answer.json()
        except httpx.HTTPError as cause:
            raise ToolError(f"the retrieval server does not answer: {type(cause).__name__}") from cause
        except ValueError as cause:
            raise ToolError("the retrieval server did not answer with JSON") from cause
        if answer.is_success:
            return body
        error = body.get("error") if isinstance(body, dict) else None
        told = error if isinstance(error, dict) else {}
        remedy = f" ({told['remedy']})" if told.get("remedy") else ""
        raise ToolError(f"{told.get('message') or f'status {answer.status_code}'}{remedy}")
