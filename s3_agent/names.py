"""Names from outside: checked before they become paths, and quoted before they become configuration.

A hub's listing, a published file or another program's results may hold any text in place of a name. The hashes and
`RelativePath` are field types that refuse text which could lead out of a folder; `file_name` makes a file's name from
any text; `literal` and `hydra_value` keep a path's quotes and `${` from being read as syntax.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

GitHash = Annotated[str, Field(pattern=r"\A[0-9a-f]{40}\z")]
"""The hash by which git names a commit or a file's bytes."""
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
    """The name of the recipe of a folder: the folder's name, reduced to what the field `name` allows."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.resolve().name).strip("-") or "own"


def literal(value: Any) -> Any:
    """`value` (a text or containers of texts), escaped such that OmegaConf reads every `${` in it literally."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if isinstance(value, Mapping):
        return {key: literal(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [literal(item) for item in value]
    return value


def hydra_value(text: object) -> str:
    """`text`, with any quotes in it, as the value of an override on Hydra's command line."""
    # A backslash stands for itself, except before a quote and at the end, where it would escape the quote.
    escaped = re.sub(r"(\\+)(?='|\Z)", r"\1\1", literal(str(text))).replace("'", r"\'")
    return f"'{escaped}'"
