"""Downloads one file over HTTP with retries: an interrupted download continues, and the size is checked.

`downloads` calls it and puts the file into the hub's cache. huggingface_hub itself restarts a killed download from the
beginning, which would be too slow for pieces of an index of 32 GB.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from s3_agent.clients.connections import client
from s3_agent.data.files.whole import partial_of, room_kept
from s3_agent.errors import DataError

TRIES = 5
WAIT_S = 20.0
_TIMEOUT = httpx.Timeout(30.0, read=60.0)
_BLOCK = 1 << 20
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_REFUSALS = {401: "set HF_TOKEN to a token that may read it", 403: "accept its terms, or set HF_TOKEN"}


class _Broken(Exception):
    """The connection or the server failed in a way that may be temporary."""


def fetch(url: str, path: Path, *, size: int | None, headers: Mapping[str, str], moved: Callable[[int], None]) -> None:
    """Download `url` to `path`; `moved` is called with the bytes that exist already, then with each block.

    A partial download in `path`.partial is continued. Raises DataError.
    """
    partial = partial_of(path)
    with room_kept(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        moved(min(partial.stat().st_size, size or 0) if partial.exists() else 0)
        tries = Retrying(
            stop=stop_after_attempt(TRIES),
            wait=wait_random_exponential(multiplier=0.5, max=WAIT_S),
            retry=retry_if_exception_type((httpx.TransportError, _Broken)),
            reraise=True,
        )
        try:
            with client(timeout=_TIMEOUT, follow_redirects=True) as http:
                tries(_continue, http, url, partial, size, {**headers, "Accept-Encoding": "identity"}, moved)
        except (httpx.HTTPError, _Broken) as cause:
            raise DataError(
                f"{url} could not be fetched: {cause or type(cause).__name__}",
                remedy="check the connection (HF_ENDPOINT names a mirror), then run it again: it continues from there",
            ) from cause
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)


def _continue(
    http: httpx.Client,
    url: str,
    partial: Path,
    size: int | None,
    headers: Mapping[str, str],
    moved: Callable[[int], None],
) -> None:
    there = partial.stat().st_size if partial.exists() else 0
    if size is not None and there > size:
        partial.unlink()
        there = 0
    if size is not None and there == size and partial.exists():
        return
    asked = {**headers, "Range": f"bytes={there}-"} if there else dict(headers)
    with http.stream("GET", url, headers=asked) as response:
        if response.status_code in _BUSY:
            raise _Broken(f"the server answers with status {response.status_code}")
        if response.status_code == 416:
            partial.unlink()  # the server's file is shorter than the partial one
            raise _Broken("the file has changed on the server")
        if response.is_error:
            raise DataError(
                f"{url} is refused with status {response.status_code}",
                remedy=_REFUSALS.get(response.status_code, "check the name and HF_ENDPOINT"),
            )
        continued = response.status_code == 206
        if not continued:
            moved(-there)
        with partial.open("ab" if continued else "wb") as file:
            for block in response.iter_raw():
                file.write(block)
                moved(len(block))
    if size is not None and (got := partial.stat().st_size) != size:
        raise _Broken(f"{got} of {size} bytes came")


def git_blob_sha1(path: Path) -> str:
    """Git's hash of a file's content; the hub lists it for files that are not in LFS."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_BLOCK):
            digest.update(chunk)
    return digest.hexdigest()
