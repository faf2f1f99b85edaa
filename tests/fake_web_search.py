"""A fake of five services that search the web, behind real HTTP: the shapes are those of their documentation.

Every answer repeats the key somewhere, as services do in links and messages, so that tests can look for it.
"""

import asyncio
from collections import Counter
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

KEY = "s3cret/key+with&signs=%'\\"
NOTHING = "a query without results"


class FakeWebSearch:
    """Counts the requests of each service. `failures` are answered first: (status, headers), one for each request.

    The queries in `rejected` get that status, always.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.failures: list[tuple[int, dict[str, str]]] = []
        self.rejected: dict[str, int] = {}
        self.gate: asyncio.Event | None = None
        self.options: Counter[str] = Counter()
        self.app = FastAPI()
        self.app.post("/search")(self._post)
        self.app.get("/search.json")(self._serpapi)
        self.app.get("/res/v1/web/search")(self._brave)
        self.app.get("/customsearch/v1")(self._google)

    @property
    def queries(self) -> list[str]:
        """The queries that were asked, in order."""
        return [query for _, query in self.asked]

    async def _answer(self, service: str, query: str, key: str | None, body: dict[str, Any]) -> JSONResponse:
        self.asked.append((service, query))
        if self.gate is not None:
            await self.gate.wait()
        if self.failures:
            status, headers = self.failures.pop(0)
            return JSONResponse({"message": f"failed for {KEY}"}, status, headers)
        if query in self.rejected:
            return JSONResponse({"message": f"{KEY} must not ask for {query}"}, self.rejected[query])
        if key != KEY:
            return JSONResponse({"error": f"the key {key} is not valid"}, 401)
        return JSONResponse({**body, "request_id": f"for {KEY}"})

    async def _post(self, request: Request) -> JSONResponse:
        body = await request.json()
        if "q" in body:
            return await self._serper(body, request)
        query, results = body.pop("query"), body.pop("max_results")
        self.options.update(body.keys())
        rows = [
            {"url": f"https://{n}.org/", "title": f"{query} {n}", "content": f"About {query}, {n}.", "score": 0.9}
            for n in range(results + 2)
        ]
        rows[1]["raw_content"] = "The whole page.\nIts second line."
        key = request.headers["authorization"].removeprefix("Bearer ")
        found = [] if query == NOTHING else rows
        return await self._answer("tavily", query, key, {"query": query, "results": found, "response_time": 1.1})

    async def _serper(self, body: dict[str, Any], request: Request) -> JSONResponse:
        query, results = body.pop("q"), body.pop("num")
        self.options.update(body.keys())
        organic = [
            {"title": f"<b>{query}</b> &amp; {n}", "link": f"https://{n}.org/", "snippet": f"{query} &lt;i&gt; {n}"}
            for n in range(results)
        ]
        organic.insert(1, {"title": "no text", "link": "https://none.org/"})
        shape = {"searchParameters": {"q": query}, "organic": [] if query == NOTHING else organic}
        if query == "answered":
            shape["answerBox"] = {"answer": "42", "title": "The <em>answer</em>"}
            shape["peopleAlsoAsk"] = [{"question": "Why?", "snippet": "Because.", "link": "https://why.org/"}]
        return await self._answer("serper", query, request.headers["x-api-key"], shape)

    async def _serpapi(self, request: Request) -> JSONResponse:
        query = request.query_params["q"]
        self.options.update(request.query_params.keys())
        shape: dict[str, Any] = {"search_metadata": {"raw_html_file": f"https://serpapi.com/?api_key={KEY}"}}
        if query == NOTHING:
            shape["error"] = "Google hasn't returned any results for this query."
        elif query == "problem":
            shape["error"] = f"Your account {KEY} has run out of searches."
        else:
            shape["organic_results"] = [
                {"position": n + 1, "title": f"{query} {n}", "link": f"https://{n}.org/", "snippet": f"{query}: {n}"}
                for n in range(int(request.query_params["num"]))
            ]
        return await self._answer("serpapi", query, request.query_params["api_key"], shape)

    async def _brave(self, request: Request) -> JSONResponse:
        query = request.query_params["q"]
        self.options.update(request.query_params.keys())
        rows = [
            {"title": f"{query} {n}", "url": f"https://{n}.org/", "description": f"<strong>{query}</strong> &#x27;{n}"}
            for n in range(int(request.query_params["count"]))
        ]
        rows[0]["extra_snippets"] = ["More <strong>text</strong>.", 7]  # pyright: ignore[reportArgumentType]
        shape = {"type": "search", "query": {"original": query}, "web": {"results": [] if query == NOTHING else rows}}
        return await self._answer("brave", query, request.headers["x-subscription-token"], shape)

    async def _google(self, request: Request) -> JSONResponse:
        query = request.query_params["q"]
        self.options.update(request.query_params.keys())
        rows = [
            {"kind": "customsearch#result", "title": f"{query} {n}", "link": f"https://{n}.org/", "snippet": f"{n} ..."}
            for n in range(int(request.query_params["num"]))
        ]
        shape = {"kind": "customsearch#search"} | ({} if query == NOTHING else {"items": rows})
        return await self._answer("google_cse", query, request.query_params["key"], shape)
