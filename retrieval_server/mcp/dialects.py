"""The tools in several dialects: ours, and the names and shapes that clients of other servers expect.

Each dialect has its own address: ours `/mcp`, the others `/mcp/NAME`. All of them call the same routes.
"""

import json
from collections.abc import Callable
from typing import Annotated, Any

from mcp.server.mcpserver import MCPServer
from mcp.types import ToolAnnotations
from pydantic import BaseModel, Field

from retrieval_server.mcp.client import Routes
from retrieval_server.schemas import Document, GrepHit, GrepRequest

READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)

Query = Annotated[str, Field(description="What to search for, in words.")]
Topk = Annotated[int | None, Field(ge=1, description="Passages at most; default: the server's.")]
Docid = Annotated[str, Field(description="The `docid` of a found passage.")]


class FoundPassage(BaseModel):
    """One found passage; `text` may be cut, and `get_document` gives all of it."""

    docid: str
    score: float
    title: str
    text: str


class Found(BaseModel):
    """What a search found, best first."""

    hits: list[FoundPassage]


class WholePassage(BaseModel):
    """A passage."""

    docid: str
    title: str
    text: str


class Matching(BaseModel):
    """A passage that matches a pattern: `match` is the first match, `around` the text around it."""

    docid: str
    title: str
    match: str
    around: str


class Matches(BaseModel):
    """Passages that match, in the order of the corpus. `next`: pass it as `start` to continue; null at the end."""

    hits: list[Matching]
    next: int | None


class Snippet(BaseModel):
    """A found passage in BrowseComp-Plus's form."""

    docid: str
    score: float
    snippet: str


class DocidText(BaseModel):
    """A passage in BrowseComp-Plus's form."""

    docid: str
    text: str


def cut(text: str, characters: int) -> str:
    """The text, or its beginning with an ellipsis."""
    return text if len(text) <= characters else f"{text[:characters]}…"


def _around(hit: GrepHit, characters: int) -> Matching:
    contents, margin = hit.document.contents, max(0, characters - (hit.end - hit.start)) // 2
    begin, end = max(0, hit.start - margin), min(len(contents), hit.end + margin)
    around = f"{'…' * (begin > 0)}{cut(contents[begin:end], characters)}{'…' * (end < len(contents))}"
    match = cut(contents[hit.start : hit.end], characters)
    return Matching(docid=hit.document.id, title=hit.document.title, match=match, around=around)


def _own(server: MCPServer, routes: Routes, characters: int) -> None:
    @server.tool(annotations=READS)
    async def search(query: Query, topk: Topk = None) -> Found:
        """Search the corpus. Returns passages, best first, with their docids."""
        hits = await routes.search(query, topk=topk)
        return Found(
            hits=[
                FoundPassage(
                    docid=hit.document.id,
                    score=hit.score,
                    title=hit.document.title,
                    text=cut(hit.document.text, characters),
                )
                for hit in hits
            ]
        )

    @server.tool(annotations=READS)
    async def get_document(docid: Docid) -> WholePassage:
        """The whole text of one passage."""
        found = await routes.document(docid)
        return WholePassage(docid=found.id, title=found.title, text=found.text)

    @server.tool(annotations=READS)
    async def grep(
        pattern: Annotated[str, Field(description="A regular expression in RE2's syntax, without look-around.")],
        topk: Topk = None,
        ignore_case: bool = False,
        start: Annotated[int, Field(ge=0, description="Where to start; `next` of the last answer continues it.")] = 0,
    ) -> Matches:
        """Find passages whose title and text match a regular expression, in the order of the corpus."""
        asked = GrepRequest.model_construct(
            pattern=pattern, topk=topk, ignore_case=ignore_case, start=start, exclude=[]
        )
        answer = await routes.grep(asked)
        return Matches(hits=[_around(hit, characters) for hit in answer.result], next=answer.next)


def _browsecomp(server: MCPServer, routes: Routes, characters: int) -> None:
    @server.tool(annotations=READS)
    async def search(query: Query) -> list[Snippet]:
        """Search the corpus. Returns the top documents with docid, score and snippet."""
        hits = await routes.search(query, topk=None)
        return [
            Snippet(docid=hit.document.id, score=hit.score, snippet=cut(hit.document.contents, characters))
            for hit in hits
        ]

    @server.tool(annotations=READS)
    async def get_document(docid: Docid) -> DocidText:
        """The full text of a document by its docid."""
        found = await routes.document(docid)
        return DocidText(docid=found.id, text=found.contents)


def _pyserini(server: MCPServer, routes: Routes, characters: int) -> None:
    @server.tool(annotations=READS, structured_output=False)
    async def search(
        query: Annotated[str | dict[str, Any], Field(description="A text, or an object with `query_txt`.")],
        index: str = "",
        hits: Annotated[int, Field(ge=1)] = 10,
    ) -> list[str]:
        """Search the corpus. Returns for each hit a line with DocID and Score, and the document."""
        text = query if isinstance(query, str) else str(query.get("query_txt") or "")
        lines: list[str] = []
        for hit in await routes.search(text, topk=hits):
            document = hit.document
            lines += [f"DocID: {document.id} | Score: {hit.score}", cut(document.contents, characters)]
        return lines

    @server.tool(annotations=READS, structured_output=False)
    async def get_document(docid: Docid, index: str = "") -> list[str]:
        """A document by its docid."""
        return [(await routes.document(docid)).contents]

    @server.tool(annotations=READS, structured_output=False)
    async def list_indexes(index_type: str = "") -> list[str]:
        """The names of the indexes; this server has one."""
        return [str((await routes.manifest())["backend"])]


def _openai(server: MCPServer, routes: Routes, characters: int) -> None:
    def url(document: Document) -> str:
        return document.id if document.id.startswith(("http://", "https://")) else f"urn:passage:{document.id}"

    @server.tool(annotations=READS, structured_output=False)
    async def search(query: Query) -> str:
        """Search the corpus. Returns ids, titles and addresses; fetch gives the text."""
        found = [hit.document for hit in await routes.search(query, topk=None)]
        rows = [{"id": one.id, "title": one.title or cut(one.text, 80), "url": url(one)} for one in found]
        return json.dumps({"results": rows}, ensure_ascii=False)

    @server.tool(annotations=READS, structured_output=False)
    async def fetch(id: Annotated[str, Field(description="The id of a found document.")]) -> str:
        """The whole text of one document."""
        found = await routes.document(id)
        told = {"id": found.id, "title": found.title, "text": found.text, "url": url(found), "metadata": None}
        return json.dumps(told, ensure_ascii=False)


DIALECTS: dict[str, Callable[[MCPServer, Routes, int], None]] = {
    "own": _own,
    "browsecomp": _browsecomp,
    "pyserini": _pyserini,
    "openai": _openai,
}


def path_of(dialect: str) -> str:
    """Where the server has the tools of a dialect."""
    return "/mcp" if dialect == "own" else f"/mcp/{dialect}"


def make_server(routes: Routes, *, characters: int, dialect: str = "own") -> MCPServer:
    """The tools of a dialect. Texts of found passages are cut to `characters`."""
    server = MCPServer(
        "retrieval",
        instructions="Search a corpus of passages, read whole passages by docid, and find exact text.",
        log_level="ERROR",
    )
    DIALECTS[dialect](server, routes, characters)
    return server
