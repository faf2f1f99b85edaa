"""A fake of the Hugging Face Hub and of GitHub's raw files, behind real HTTP, for tests without a network.

It answers the requests with which huggingface_hub downloads data sets (listing with sizes and hashes, HEAD, ranges),
and can be set to cut, corrupt, refuse or slow what it sends. Serve it with `testing.servers.serve`.
"""

import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import StreamingResponse

GIT_SUFFIXES = (".jsonl", ".json", ".md")
"""Files that are in git itself; all others are in LFS."""


@dataclass(slots=True)
class FakeHub:
    """Data sets by `owner/name`, each a mapping of paths to bytes; `raw` files by their path.

    `cut`, `spoil`, `refuse` and `busy` name paths and how many of the next answers are cut in the middle, get a changed
    byte, are refused with 403, or fail with 503. `pause_s` is waited after each block of `block` bytes.
    """

    data_sets: Mapping[str, Mapping[str, bytes]]
    raw: Mapping[str, bytes] = field(default_factory=dict)
    token: str | None = None
    cut: dict[str, int] = field(default_factory=dict)
    spoil: dict[str, int] = field(default_factory=dict)
    refuse: dict[str, int] = field(default_factory=dict)
    busy: dict[str, int] = field(default_factory=dict)
    block: int = 1 << 16
    pause_s: float = 0.0
    sent: list[tuple[str, int]] = field(default_factory=list)
    """Each file that was requested, and its first requested byte."""

    def commit(self, repo: str) -> str:
        """The commit hash, computed from the contents."""
        digest = hashlib.sha1(usedforsecurity=False)
        for path, content in sorted(self.data_sets[repo].items()):
            digest.update(path.encode() + hashlib.sha256(content).digest())
        return digest.hexdigest()

    def listing(self, repo: str) -> dict[str, Any]:
        """The answer of `/api/datasets/…` with `blobs=true`."""
        files = [self._sibling(path, content) for path, content in sorted(self.data_sets[repo].items())]
        return {"id": repo, "sha": self.commit(repo), "private": False, "tags": [], "downloads": 0, "siblings": files}

    @staticmethod
    def _sibling(path: str, content: bytes) -> dict[str, Any]:
        sibling: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": oid(path, content)}
        if not path.endswith(GIT_SUFFIXES):
            digest = hashlib.sha256(content).hexdigest()
            sibling |= {"blobId": "0" * 40, "lfs": {"sha256": digest, "size": len(content), "pointerSize": 134}}
        return sibling

    def due(self, faults: dict[str, int], path: str) -> bool:
        """Whether this answer is to be faulty; counts it."""
        if faults.get(path, 0) <= 0:
            return False
        faults[path] -= 1
        return True


def oid(path: str, content: bytes) -> str:
    """The ETag of a file: git's SHA-1, or the SHA-256 in LFS."""
    if path.endswith(GIT_SUFFIXES):
        return hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()
    return hashlib.sha256(content).hexdigest()


def hub_app(hub: FakeHub) -> FastAPI:
    """The hub under `/api` and `/datasets`, GitHub's raw files under `/raw`."""
    app = FastAPI()

    def allowed(request: Request) -> None:
        if hub.token is not None and request.headers.get("authorization") != f"Bearer {hub.token}":
            raise HTTPException(401, headers={"X-Error-Message": "a token is needed"})

    @app.get("/api/datasets/{owner}/{name}/revision/{revision}")
    def info(request: Request, owner: str, name: str, revision: str) -> dict[str, Any]:
        allowed(request)
        if f"{owner}/{name}" not in hub.data_sets:
            raise HTTPException(404, headers={"X-Error-Code": "RepoNotFound"})
        return hub.listing(f"{owner}/{name}")

    @app.api_route("/datasets/{owner}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    def resolve(request: Request, owner: str, name: str, revision: str, path: str) -> Response:
        allowed(request)
        content = hub.data_sets.get(f"{owner}/{name}", {}).get(path)
        if content is None:
            raise HTTPException(404, headers={"X-Error-Code": "EntryNotFound"})
        etag = f'"{oid(path, content)}"'
        headers = {"ETag": etag, "X-Repo-Commit": hub.commit(f"{owner}/{name}"), "Accept-Ranges": "bytes"}
        if not path.endswith(GIT_SUFFIXES):
            headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(len(content))}
        return send(request, path, content, headers)

    @app.get("/raw/{path:path}")
    def raw(request: Request, path: str) -> Response:
        if path not in hub.raw:
            raise HTTPException(404)
        return send(request, path, hub.raw[path], {"Accept-Ranges": "bytes"})

    def send(request: Request, path: str, content: bytes, headers: dict[str, str]) -> Response:
        if request.method == "HEAD":
            return Response(headers={**headers, "Content-Length": str(len(content))})
        if hub.due(hub.refuse, path):
            raise HTTPException(403)
        if hub.due(hub.busy, path):
            raise HTTPException(503)
        start = int(request.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        hub.sent.append((path, start))
        if start >= len(content) > 0:
            raise HTTPException(416)
        if hub.due(hub.spoil, path):
            content = bytes([content[0] ^ 1]) + content[1:]
        body, status = content[start:], 206 if start else 200
        headers = {**headers, "Content-Length": str(len(body))}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = hub.due(hub.cut, path)

        def blocks() -> Iterator[bytes]:
            sending = body[: len(body) // 2] if cut else body
            for begin in range(0, len(sending), hub.block):
                yield sending[begin : begin + hub.block]
                if hub.pause_s:
                    time.sleep(hub.pause_s)

        return StreamingResponse(blocks(), status_code=status, headers=headers)

    return app
