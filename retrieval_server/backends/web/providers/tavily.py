"""Tavily: search for language models, https://tavily.com.

With `include_raw_content` in the options, a page's whole text is its text.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from retrieval_server.backends.web.providers.base import Call, Found, Provider, rows


def _call(query: str, results: int, options: Mapping[str, Any], key: str) -> Call:
    body = {"query": query, "max_results": results, **options}
    return Call("POST", "/search", headers={"Authorization": f"Bearer {key}"}, body=body)


def _found(answer: dict[str, Any]) -> Iterator[Found]:
    for row in rows(answer, "results"):
        yield Found(row.get("url"), row.get("title"), row.get("raw_content") or row.get("content"))


PROVIDER = Provider(
    version=1,
    address="https://api.tavily.com",
    key_variable="TAVILY_API_KEY",
    most=20,
    call=_call,
    found=_found,
    options=(
        *("search_depth", "topic", "time_range", "country"),
        *("include_domains", "exclude_domains", "include_raw_content"),
    ),
    longest=400,
)
