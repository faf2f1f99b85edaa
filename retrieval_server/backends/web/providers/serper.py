"""Serper: Google's results, https://serper.dev."""

from collections.abc import Iterator, Mapping
from typing import Any

from retrieval_server.backends.web.providers.base import Call, Found, Provider, rows


def _call(query: str, results: int, options: Mapping[str, Any], key: str) -> Call:
    return Call("POST", "/search", headers={"X-API-KEY": key}, body={"q": query, "num": results, **options})


def _found(answer: dict[str, Any]) -> Iterator[Found]:
    if isinstance(box := answer.get("answerBox"), dict):
        yield Found(box.get("link"), box.get("title"), box.get("answer") or box.get("snippet"))
    for row in rows(answer, "organic"):
        yield Found(row.get("link"), row.get("title"), row.get("snippet"))
    for row in rows(answer, "peopleAlsoAsk"):
        yield Found(row.get("link"), row.get("title") or row.get("question"), row.get("snippet"))


PROVIDER = Provider(
    version=1,
    address="https://google.serper.dev",
    key_variable="SERPER_API_KEY",
    most=100,
    call=_call,
    found=_found,
    options=("gl", "hl", "location", "tbs"),
)
