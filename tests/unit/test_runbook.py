"""What docs/runbook.md quotes exists: each message in its tables of symptoms is in the source, and so is each finding.

A quote that is left behind when a message is reworded can not be found by the reader who searches for it.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOLE = "\N{HORIZONTAL ELLIPSIS}"
"""Stands for any value: in a quote, and in the literals that we read, where an f-string has a placeholder."""
OF_OTHERS = frozenset(
    {
        "Free memory on device … is less than desired GPU memory utilization",  # vLLM
        "No available memory for the cache blocks",
        "is larger than the available",
        "ImportError: flash_attn",  # verl
        "cannot close exported pointers exist",  # Python, below verl
        "Total available GPUs … is less than total desired GPUs",
        "WARN: grad_norm is not finite",
        "Unknown advantage estimator simply: s3_agent_grpo",
        "aten.mm.default got mixed torch.Tensor and DTensor",  # torch
        "list index out of range",
        "Unable to find address for: …",
        "device-side assert",
        "Streaming responses are not supported",  # Agent Lightning
        "no trainable batch after drop+floor; skipping this training step",
        "No API key configured",  # wandb
        "Too many open files",  # the system
        "Permission denied",
        "No space left on device",
        "pip list",  # a command
    }
)
"""What the tables quote of other software."""


def texts(source: str) -> Iterator[str]:
    """The literals of a module, without docstrings and with a hole for each placeholder."""
    nodes = [*ast.walk(ast.parse(source))]
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else HOLE for part in node.values)


@cache
def literals() -> frozenset[str]:
    """Every literal of the product."""
    paths = (path for package in ("s3_agent", "retrieval_server") for path in (ROOT / package).rglob("*.py"))
    return frozenset(text for path in paths for text in texts(path.read_text(encoding="utf-8")))


def is_in(quote: str, known: frozenset[str]) -> bool:
    """Whether a literal contains the quote; `…`, `*` and a single capital in the quote stand for any value."""
    pieces = re.split(rf"{HOLE}|\*|\b[A-Z]\b", quote)
    pattern = re.compile(".*".join(map(re.escape, pieces)))
    return any(pattern.search(text) for text in known)


def symptoms() -> list[list[str]]:
    """The rows of the tables of symptoms: symptom, cause, fix."""
    text = (ROOT / "docs/runbook.md").read_text(encoding="utf-8").partition("\n## Symptoms")[2]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [row for row in rows if row[0] != "symptom"]


def messages() -> list[str]:
    """What the symptoms quote, where it is several words."""
    return [quote for row in symptoms() for quote in re.findall(r"`([^`]*)`", row[0]) if " " in quote]


def findings() -> list[str]:
    """The findings that the rows name as `… of the doctor`."""
    named = re.findall(r"((?:`[^`]*`(?:, | and )?)+) of the doctor", "\n".join(" | ".join(row) for row in symptoms()))
    return [name for names in named for name in re.findall(r"`([^`]*)`", names)]


def test_every_message_of_ours_that_the_runbook_quotes_is_in_the_source() -> None:
    assert len(messages()) > 30
    assert [quote for quote in messages() if quote not in OF_OTHERS and not is_in(quote, literals())] == []
    assert OF_OTHERS.difference(messages()) == frozenset(), "these are quoted no more"


def test_every_finding_that_the_runbook_names_is_one_of_the_doctors() -> None:
    assert len(findings()) > 20
    assert [name for name in findings() if not is_in(name, literals())] == []


@pytest.mark.parametrize(
    ("quote", "expected"),
    [
        ("… is not a record", True),
        ("… is not a record of a …", True),
        ("cut after N of M tokens", True),
        ("files.*-missing", True),
        ("… is no whole record", False),
        ("a record … is not", False),
        ("cut before N tokens", False),
        ("a docstring says this", False),
    ],
)
def test_a_quote_that_nothing_prints_is_found(quote: str, expected: bool) -> None:
    source = (
        '"""Here a docstring says this."""\n'
        'fail(f"{place} is not a record of a rollout")\n'
        'log(f"cut after {n} of {m} tokens", id=f"files.{x}-missing")\n'
    )
    assert is_in(quote, frozenset(texts(source))) is expected
