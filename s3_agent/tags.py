"""The s3 protocol's tags in one place: how passages are shown and how a response is read (docs/protocol.md#s3).

Everything that the policy reads or writes between tags is made or parsed here. Text from a corpus, a question or a
server may hold protocol tags; `guard.neutral` breaks them before they are shown, so that they can not act as tags.
"""

import json
import re
from collections.abc import Iterator, Sequence

from s3_agent.guard import neutral
from s3_agent.types import Action, ActionKind, Passage, whole_text

QUERY_END = "</query>"
INVALID_HINT = (
    "\n\nThe information is not enough to answer the question. Let me dive deeper by generating a brand new search "
    "query between <query> and </query> tags in JSON format:\n<query>\n"
)

_TRUE = {"true", "yes", "1", "y"}


def documents(passages: Sequence[Passage], control: frozenset[str] = frozenset(), *, space: str = "") -> str:
    """One line `Doc i(Title: …) …` per passage, numbered from 1, with `space` before the parenthesis."""
    return "\n".join(
        f"Doc {number}{space}(Title: {neutral(passage.title, control)}) {neutral(passage.text, control)}"
        for number, passage in enumerate(passages, 1)
    ).strip()


def initial_block(passages: Sequence[Passage], control: frozenset[str] = frozenset()) -> str:
    """The information block of the prompt: one line `Doc i (Title: …) …` per passage, numbered from 1."""
    return f"<information>\n{documents(passages, control, space=' ')}\n</information>\n"


def read_initial_block(text: str) -> tuple[Passage, ...]:
    """The passages of a prompt's last information block, such that `initial_block` writes the same lines again.

    This is needed since published data holds a prompt only as text. A line counts as a document if it has the next
    number; quoted titles may hold brackets.
    """
    _, start, block = text.rpartition("<information>\n")
    block = block.partition("\n</information>")[0] if start else ""
    headers: list[re.Match[str]] = []
    for header in re.finditer(r"^Doc ([0-9]{1,6}) \(Title: ", block, re.MULTILINE):
        if int(header[1]) == len(headers) + 1:
            headers.append(header)
    passages = []
    for number, header in enumerate(headers, 1):
        end = headers[number].start() - 1 if number < len(headers) else len(block)
        document = block[header.end() : end]
        end_of_title = '") ' if document.startswith('"') and '") ' in document else ") "
        title, found, body = document.partition(end_of_title)
        title = title + end_of_title[:-2] if found else title.removesuffix(")")
        passages.append(Passage(id="", title=title, text=body))
    return tuple(passages)


def observation(passages: Sequence[Passage], control: frozenset[str] = frozenset()) -> str:
    """The information block after a search: `Doc i(Title: …) …`, no newline inside the tags, numbered from 1."""
    return f"\n\n<information>{documents(passages, control)}</information>\n\n"


def cut_after_query(response: str) -> str:
    """Keep everything up to the first `</query>`; add the tag's start if only its end was written
    (docs/originals.md#a2).
    """
    head, end, _ = response.partition(QUERY_END)
    if not end:
        return response
    return head + end if "<query>" in head else f"<query>\n{head}{end}"


def cut_after_action(response: str) -> str:
    """Keep everything up to the first `</search>`, else up to the first `</answer>`: Search-R1's response."""
    for end in ("</search>", "</answer>"):
        head, found, _ = response.partition(end)
        if found:
            return head + found
    return response


def bodies(text: str, tag: str) -> Iterator[str]:
    """The text between each `<tag>` and the next `</tag>`, in order, in time linear in the text's length."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    start = text.find(opening)
    while start >= 0:
        end = text.find(closing, start)
        if end < 0:
            return
        yield text[start + len(opening) : end]
        start = text.find(opening, end)


def parse_query(body: str) -> str:
    """The search string of a query body, read as leniently as in the original (docs/protocol.md#s3)."""
    body = body.strip()
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return body
    query = value.get("query") if isinstance(value, dict) else None
    if isinstance(query, list) and query:
        query = query[0]
    return whole_text(query) if isinstance(query, str) else body


def marks(response: str) -> Iterator[tuple[int, ...]]:
    """The document numbers of each `<important_info>`, in the order written, each once."""
    for body in bodies(response, "important_info"):
        # A longer run of digits can not be a document's number, and int() takes quadratic time for a huge one.
        yield tuple(dict.fromkeys(int(run) for run in re.findall(r"[0-9]+", body) if len(run) <= 4))


def parse(response: str) -> Action:
    """Parse one response. If it holds both a completion and a query, the completion counts."""
    text = cut_after_query(response)
    marked = next(marks(text), None)
    complete = next(bodies(text, "search_complete"), None)
    if complete is not None and complete.strip().lower() in _TRUE:
        return Action(kind=ActionKind.FINISH, marked=marked)
    query = next(bodies(text, "query"), None)
    if query is None:
        return Action(kind=ActionKind.INVALID, marked=marked)
    return Action(kind=ActionKind.SEARCH, query=parse_query(query), marked=marked)
