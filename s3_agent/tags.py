"""The s3 protocol's tags in one place: how passages are shown and how a response is read (spec §1.2-§1.7, §2.1).

Everything the policy reads or writes between tags goes through here. Text from a corpus, a question or a server may
hold protocol tags; `neutral` breaks them before they are shown, so that they can not act as protocol (promise 5).
"""

import json
import re
from collections.abc import Iterator, Sequence

from s3_agent.types import Action, ActionKind, Passage

QUERY_END = "</query>"
INVALID_HINT = (
    "\n\nThe information is not enough to answer the question. Let me dive deeper by generating a brand new search "
    "query between <query> and </query> tags in JSON format:\n<query>\n"
)

_TAGS = ("question", "information", "query", "important_info", "search_complete", "think", "search", "answer")
_FORGED = re.compile(r"<(?=\s*(?:/\s*)?(?:" + "|".join(_TAGS) + r")\b|\|)", re.IGNORECASE)
_TRUE = {"true", "yes", "1", "y"}


def neutral(text: str) -> str:
    """`text` with every protocol tag or chat marker broken by a look-alike of its opening bracket."""
    return _FORGED.sub("\u2039", text)


def _document(number: int, passage: Passage, *, space: str) -> str:
    return f"Doc {number}{space}(Title: {neutral(passage.title)}) {neutral(passage.text)}"


def initial_block(passages: Sequence[Passage]) -> str:
    """The information block of the prompt: one `Doc i (Title: …) …` a line, numbered from 1."""
    lines = "\n".join(_document(number, passage, space=" ") for number, passage in enumerate(passages, 1)).strip()
    return f"<information>\n{lines}\n</information>\n"


def observation(passages: Sequence[Passage]) -> str:
    """The information block after a search: `Doc i(Title: …) …`, no newline inside the tags, numbered from 1."""
    lines = "\n".join(_document(number, passage, space="") for number, passage in enumerate(passages, 1)).strip()
    return f"\n\n<information>{lines}</information>\n\n"


def cut_after_query(response: str) -> str:
    """Keep everything up to the first `</query>`; open the tag if only its end was written (spec §1.4 step 2)."""
    head, end, _ = response.partition(QUERY_END)
    if not end:
        return response
    return head + end if "<query>" in head else f"<query>\n{head}{end}"


def bodies(text: str, tag: str) -> Iterator[str]:
    """What stands between each `<tag>` and the next `</tag>`, in order; linear in the text's length."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    start = text.find(opening)
    while start >= 0:
        end = text.find(closing, start)
        if end < 0:
            return
        yield text[start + len(opening) : end]
        start = text.find(opening, end)


def parse_query(body: str) -> str:
    """The search string of a query body, lenient as the original (spec §1.5)."""
    body = body.strip()
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return body
    query = value.get("query") if isinstance(value, dict) else None
    if isinstance(query, list) and query:
        query = query[0]
    # JSON can escape half a surrogate pair, which no UTF-8 text and so no request can hold.
    return query.encode(errors="replace").decode() if isinstance(query, str) else body


def marks(response: str) -> Iterator[tuple[int, ...]]:
    """Document numbers of each `<important_info>`, in the order written and once each."""
    for body in bodies(response, "important_info"):
        # A longer digit run can not be a document's number, and int() of a huge one is quadratic.
        yield tuple(dict.fromkeys(int(run) for run in re.findall(r"[0-9]+", body) if len(run) <= 4))


def parse(response: str) -> Action:
    """Read one response: completion wins over a query, a query over nothing (spec §1.4 steps 2-4)."""
    text = cut_after_query(response)
    marked = next(marks(text), None)
    complete = next(bodies(text, "search_complete"), None)
    if complete is not None and complete.strip().lower() in _TRUE:
        return Action(kind=ActionKind.FINISH, marked=marked)
    query = next(bodies(text, "query"), None)
    if query is None:
        return Action(kind=ActionKind.INVALID, marked=marked)
    return Action(kind=ActionKind.SEARCH, query=parse_query(query), marked=marked)
