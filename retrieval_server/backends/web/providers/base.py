"""What a provider of web search is: how a query becomes a request, and how an answer becomes pages.

The rest (keys, waiting, recording) is the same for all of them, and is not here.
"""

import html
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, NamedTuple

from retrieval_server.passages import contents_of, whole_text
from retrieval_server.schemas import Document

_TAG = re.compile(r"</?[a-zA-Z][^<>]*>|<!--.*?-->", re.DOTALL)
_SPACES = re.compile(r"\s+")


class Call(NamedTuple):
    """One HTTP request. It holds the key: never write it anywhere."""

    method: str
    path: str
    params: dict[str, Any] | None = None
    headers: dict[str, str] | None = None
    body: dict[str, Any] | None = None


class Found(NamedTuple):
    """One result as the provider sends it: any of the three may be missing, or hold HTML."""

    url: Any
    title: Any
    text: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """One service that searches the web.

    `call(query, results, options, key)` makes the request; `found(answer)` yields the results of a decoded answer, best
    first; `problem(answer)` says why an answer with status 200 is an error, None if it is none. A small one:

        PROVIDER = Provider(
            version=1,
            address="https://api.example.org",
            key_variable="EXAMPLE_API_KEY",
            most=10,
            call=lambda query, results, options, key: Call("GET", "/search", {"q": query, "n": results, "key": key}),
            found=lambda answer: (Found(row["url"], row["title"], row["text"]) for row in answer["rows"]),
        )
    """

    version: int
    """Raise it when `call` or `found` changes: recorded answers of another version are not used."""
    address: str
    key_variable: str
    """The environment variable with the key."""
    most: int
    """The largest number of results of one request."""
    call: Callable[[str, int, Mapping[str, Any], str], Call]
    found: Callable[[dict[str, Any]], Iterable[Found]]
    problem: Callable[[dict[str, Any]], str | None] = field(default=lambda answer: None)
    options: tuple[str, ...] = ()
    """The names of further parameters of a request that settings may give."""
    required: tuple[str, ...] = ()
    """Those of `options` without which no request is possible."""
    longest: int = 2048
    """Characters of a query; the rest is cut."""
    most_words: int | None = None
    """Words of a query; the rest is cut."""

    def fitting(self, query: str) -> str:
        """The query as it is sent: without superfluous white space, and cut to what the provider accepts."""
        return " ".join(query.split()[: self.most_words])[: self.longest].rstrip()


def rows(answer: Any, *path: str) -> Iterator[dict[str, Any]]:
    """The objects in the list at this path of an answer; none if there is no such list."""
    for name in path:
        answer = answer.get(name) if isinstance(answer, dict) else None
    for row in answer if isinstance(answer, list) else ():
        if isinstance(row, dict):
            yield row


def plain(value: Any) -> str:
    """Text without tags and entities; empty for anything that is not a text."""
    if not isinstance(value, str):
        return ""
    return whole_text(html.unescape(_TAG.sub("", value))).replace("\xa0", " ").strip()


def documents(found: Iterable[Found]) -> list[Document]:
    """The results as passages, in order: each address once, without those that have no text."""
    pages: dict[str, Document] = {}
    for url, title, text in found:
        title, text = _SPACES.sub(" ", plain(title)), plain(text)
        if not text:
            continue
        contents = contents_of(title, text)
        # A direct answer has no address of its own.
        name = url if isinstance(url, str) and url else f"answer:{sha256(contents.encode()).hexdigest()[:16]}"
        pages.setdefault(name, Document(id=whole_text(name), title=title, text=text, contents=contents))
    return list(pages.values())
