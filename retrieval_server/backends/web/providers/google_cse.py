"""Google's Custom Search JSON API. `options.cx` is the id of the search engine; the key is in the query string."""

from collections.abc import Iterator, Mapping
from typing import Any

from retrieval_server.backends.web.providers.base import Call, Found, Provider, rows


def _call(query: str, results: int, options: Mapping[str, Any], key: str) -> Call:
    return Call("GET", "/customsearch/v1", {"q": query, "num": results, **options, "key": key})


def _found(answer: dict[str, Any]) -> Iterator[Found]:
    for row in rows(answer, "items"):
        yield Found(row.get("link"), row.get("title"), row.get("snippet"))


PROVIDER = Provider(
    version=1,
    address="https://www.googleapis.com",
    key_variable="GOOGLE_API_KEY",
    most=10,
    call=_call,
    found=_found,
    options=("cx", "cr", "dateRestrict", "gl", "hl", "lr", "safe", "siteSearch", "siteSearchFilter"),
    required=("cx",),
)
