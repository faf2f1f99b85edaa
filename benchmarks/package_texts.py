"""Provides real English texts without a download: the prose of installed packages, cut into passages of 100 words."""

import json
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

WORDS = 100
_SUFFIXES = {".md", ".rst", ".txt", ".py"}
_DOCSTRING = re.compile(r'"""(.{200,}?)"""', re.DOTALL)


def _prose(path: Path) -> str:
    text = path.read_text(encoding="utf-8", errors="ignore")
    return "\n".join(_DOCSTRING.findall(text)) if path.suffix == ".py" else text


def passages(limit: int) -> Iterator[tuple[str, str]]:
    """At most `limit` different (title, text), in an order that depends only on the installed packages."""
    seen: set[str] = set()
    root = Path(sysconfig.get_paths()["purelib"])
    files = (path for path in sorted(root.rglob("*")) if path.suffix in _SUFFIXES or path.name == "METADATA")
    for path in files:
        if not path.is_file() or "license" in path.name.lower() or "/tests/" in str(path):
            continue
        words = _prose(path).split()
        for start in range(0, len(words) - WORDS // 2, WORDS):
            text = " ".join(words[start : start + WORDS])
            if text in seen or sum(map(str.isalpha, text)) < 0.6 * len(text):
                continue
            seen.add(text)
            yield str(path.relative_to(root)), text
            if len(seen) == limit:
                return


def write_corpus(path: Path, limit: int) -> int:
    """Write a JSONL corpus of these texts; return their number."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for count, (title, text) in enumerate(passages(limit), 1):
            file.write(json.dumps({"id": str(count - 1), "title": title, "text": text}) + "\n")
    return count
