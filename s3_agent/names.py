"""Names that come from outside and become paths: the one place where they are checked, before anything is written.

A hub's listing, a published file or somebody else's results may hold any text where a name is expected. `Hash` and
`RelativePath` are field types that refuse what could lead out of a folder; `file_name` makes a file's name of any text.
"""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

GitHash = Annotated[str, Field(pattern=r"\A[0-9a-f]{40}\z")]
"""A commit or a file's bytes as git names them."""
ContentHash = Annotated[str, Field(pattern=r"\A(?:[0-9a-f]{40}|[0-9a-f]{64})\z")]
"""Git's SHA-1 or a SHA-256."""


def _relative(name: str) -> str:
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or re.search(r"[\x00-\x1f\x7f\\]", name):
        raise ValueError(f"{name!r} is not the name of a file below a folder")
    return name


RelativePath = Annotated[str, AfterValidator(_relative)]
"""The path of a file below a folder: no `..`, not absolute, no control characters or backslashes."""


def file_name(text: str) -> str:
    """A file's name made of `text`: letters, digits, `_`, `-`, and `.` that is not the first character."""
    return re.sub(r"\A\.|[^\w.-]", "_", text) or "_"
