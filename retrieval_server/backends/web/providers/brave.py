"""Brave Search, https://api.search.brave.com. Its descriptions are HTML; extra snippets follow the description."""

from collections.abc import Iterator, Mapping
from typing import Any

from retrieval_server.backends.web.providers.base import Call, Found, Provider, rows


def _call(query: str, results: int, options: Mapping[str, Any], key: str) -> Call:
    params = {"q": query, "count": results, **options}
    return Call("GET", "/res/v1/web/search", params, {"X-Subscription-Token": key, "Accept": "application/json"})


def _found(answer: dict[str, Any]) -> Iterator[Found]:
    for row in rows(answer, "web", "results"):
        more = row.get("extra_snippets")
        texts = [row.get("description"), *(more if isinstance(more, list) else ())]
        whole = "\n".join(text for text in texts if isinstance(text, str) and text)
        yield Found(row.get("url"), row.get("title"), whole)


PROVIDER = Provider(
    version=1,
    address="https://api.search.brave.com",
    key_variable="BRAVE_API_KEY",
    most=20,
    call=_call,
    found=_found,
    options=("country", "search_lang", "ui_lang", "safesearch", "freshness", "extra_snippets", "goggles"),
    longest=400,
    most_words=50,
)
