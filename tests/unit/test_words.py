"""The prose of the repository is plain English, without the private words that a stranger would have to read twice.

Docs, docstrings, comments and messages are checked; names and what stands between backticks are not.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "docs/*.md", "examples/**/*.md")
CODE = ("s3_agent/**/*.py", "retrieval_server/**/*.py", "benchmarks/*.py", "examples/**/*.py")
PRIVATE = re.compile(
    r"\b(anew|somebody|one's\s+own|mends?|mended|begun|to\s+be\s+had|told\s+by|(?:is|are)\s+said\s+of|speaks?\s+of|"
    r"what\s+it\s+is\s+made\s+of)\b",
    re.IGNORECASE,
)
INSTEAD = "write: again, a user, your, fix, started, available, reported by, described, about, inputs"


def texts(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of each docstring, literal of several words and block of comment lines in a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value
    block: list[str] = []
    last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if block and token.start[0] != last + 1:
                yield last - len(block) + 1, "\n".join(block)
                block = []
            block.append(token.string.lstrip("#"))
            last = token.start[0]
    if block:
        yield last - len(block) + 1, "\n".join(block)


def found_in(place: str, line: int, text: str) -> list[str]:
    prose = re.sub(r"`[^`]*`", lambda code: "\n" * code[0].count("\n"), text)
    return [
        f"{place}:{line + prose[: word.start()].count(chr(10))}: {' '.join(word[0].split())}"
        for word in PRIVATE.finditer(prose)
    ]


def test_no_private_word_is_in_the_prose() -> None:
    found: list[str] = []
    for pattern in PAGES:
        for path in sorted(ROOT.glob(pattern)):
            found += found_in(str(path.relative_to(ROOT)), 1, path.read_text(encoding="utf-8"))
    for pattern in CODE:
        for path in sorted(ROOT.glob(pattern)):
            for line, text in texts(path.read_text(encoding="utf-8")):
                found += found_in(str(path.relative_to(ROOT)), line, text)
    assert found == [], INSTEAD


def test_a_private_word_is_found_where_it_stands() -> None:
    source = '"""Names.\n\nIt is told by the part.\n"""\nmend = 1  # begun anew\nsay("`mend` is a key")\nkey = "mend"\n'
    found = [place for line, text in texts(source) for place in found_in("x.py", line, text)]
    assert sorted(found) == ["x.py:3: told by", "x.py:5: anew", "x.py:5: begun"]


def test_a_private_phrase_is_found_across_a_line_break() -> None:
    source = '"""Names.\n\nIt is told\nby the part.\n"""\nx = 1\n# A page speaks\n# of it.\ny = 2  # told\nz = by = 3\n'
    found = [place for line, text in texts(source) for place in found_in("x.py", line, text)]
    assert sorted(found) == ["x.py:3: told by", "x.py:7: speaks of"]
