"""The retriever's client side: queries in, passages out, over the wire contract of docs/retrieval.md."""

import os
from collections.abc import Sequence
from typing import Any, Protocol

import httpx

from retrieval_server.passages import read_id, read_passage
from retrieval_server.schemas import KEY_VARIABLE, RetrieveRequest
from s3_agent.clients.http import Client, bearer, call_json
from s3_agent.clients.servers import Servers, addresses
from s3_agent.errors import RetrieverError
from s3_agent.types import Passage

QUERY_REFUSED = frozenset({400, 413, 422})
"""The statuses with which a server refuses a query that it can not search for, or a request of nothing else."""


class Retriever(Protocol):
    """What an agent needs of a retriever."""

    async def retrieve(self, query: str, *, topk: int) -> tuple[Passage, ...]:
        """At most `topk` passages, best first. Raises RetrieverError."""
        ...


def passage_of(document: dict[str, Any]) -> Passage:
    """A passage from any document form in use (`retrieval_server.passages`). Raises ValueError for another.

    The first line of `contents` is kept as it is: in wiki-18 it has quotes, which trained checkpoints have seen.
    """
    passage = read_passage(document)
    return Passage(id=read_id(document) or "", title=passage.title_line or passage.title, text=passage.text)


class HttpRetriever:
    """A retriever behind `POST {url}/retrieve`: ours, Search-R1's, s3's or Agent Lightning's.

    `url` may hold several addresses, separated by commas, of servers over the same index (`s3_agent.clients.servers`).
    A key in the environment (KEY_VARIABLE, which our server requires) is sent as a bearer token.
    """

    def __init__(self, client: httpx.AsyncClient, url: str, *, patience_s: float | None = None) -> None:
        urls = addresses(url)
        self._client: Client = client if len(urls) == 1 else Servers(client, urls)
        self._headers = bearer(os.environ.get(KEY_VARIABLE))
        self._url = ",".join(urls) + "/retrieve"
        self._patience_s = patience_s

    async def retrieve(self, query: str, *, topk: int) -> tuple[Passage, ...]:
        [passages] = await self.retrieve_batch([query], topk=topk)
        return passages

    async def retrieve_batch(self, queries: Sequence[str], *, topk: int) -> list[tuple[Passage, ...]]:
        """The passages of each query, in the order of `queries`."""
        request = RetrieveRequest(queries=list(queries), topk=topk, return_scores=True)
        answer = await call_json(
            self._client,
            "POST",
            self._url,
            error=RetrieverError,
            body=request.model_dump(),
            headers=self._headers,
            patience_s=self._patience_s,
        )
        try:
            found = [tuple(passage_of(hit["document"]) for hit in hits) for hits in answer["result"]]
        except (KeyError, TypeError, AttributeError, ValueError) as cause:
            raise RetrieverError(f"{self._url} answered in an unknown form: {str(answer)[:300]}") from cause
        if len(found) != len(queries):
            raise RetrieverError(f"{self._url} answered {len(found)} lists for {len(queries)} queries")
        return found
