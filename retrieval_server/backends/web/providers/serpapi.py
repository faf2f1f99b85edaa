"""SerpAPI: results of Google and other engines, https://serpapi.com. Its key is in the query string."""

from collections.abc import Iterator, Mapping
from typing import Any

from retrieval_server.backends.web.providers.base import Call, Found, Provider, rows

NOTHING_FOUND = "hasn't returned any results"


def _call(query: str, results: int, options: Mapping[str, Any], key: str) -> Call:
    return Call("GET", "/search.json", {"engine": "google", "q": query, "num": results, **options, "api_key": key})


def _found(answer: dict[str, Any]) -> Iterator[Found]:
    if isinstance(box := answer.get("answer_box"), dict):
        yield Found(box.get("link"), box.get("title"), box.get("answer") or box.get("snippet"))
    for row in rows(answer, "organic_results"):
        yield Found(row.get("link"), row.get("title"), row.get("snippet"))
    for row in rows(answer, "related_questions"):
        yield Found(row.get("link"), row.get("title") or row.get("question"), row.get("snippet"))


def _problem(answer: dict[str, Any]) -> str | None:
    problem = answer.get("error")
    return None if problem is None or NOTHING_FOUND in str(problem) else str(problem)


PROVIDER = Provider(
    version=1,
    address="https://serpapi.com",
    key_variable="SERPAPI_API_KEY",
    most=100,
    call=_call,
    found=_found,
    problem=_problem,
    options=("engine", "gl", "hl", "google_domain", "location", "safe", "tbs"),
)
