"""Names that come from outside: checked before they become paths, and quoted before they become configuration.

A hub's listing, a published file or another program's results may hold any text where a name is expected. The hashes
and `RelativePath` are field types that refuse what could lead out of a folder; `file_name` makes a file's name of any
text; `literal` and `hydra_value` keep a path's quotes and `${` from being read as syntax.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

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
    """A file's name from `text`: letters, digits, `_`, `-`, and `.` that is not the first character."""
    return re.sub(r"\A\.|[^\w.-]", "_", text) or "_"


def recipe_name(folder: Path) -> str:
    """The name of the recipe of a folder: what the field `name` allows of the folder's own."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.resolve().name).strip("-") or "own"


def literal(value: Any) -> Any:
    """`value`, a text or containers of texts, such that OmegaConf reads every `${` in it as it stands."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if isinstance(value, Mapping):
        return {key: literal(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [literal(item) for item in value]
    return value


def hydra_value(text: object) -> str:
    """`text` as the value of an override on Hydra's command line, whatever quotes it holds."""
    # A backslash is one, but before a quote and at the end, where it would escape the quote.
    escaped = re.sub(r"(\\+)(?='|\Z)", r"\1\1", literal(str(text))).replace("'", r"\'")
    return f"'{escaped}'"
