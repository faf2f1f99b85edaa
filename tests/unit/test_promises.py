"""docs/promises.md names tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/promises.md").read_text(encoding="utf-8")
NAMED = [
    (file, test)
    for file, tests in re.findall(r"^- `(tests/\S+\.py)`: (.*?)(?=\n- |\n\n|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    for test in re.findall(r"`(test_\w+)`", tests)
]


def test_every_promise_names_tests() -> None:
    promises = re.findall(r"^## (\d)\.(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert [int(number) for number, _ in promises] == list(range(1, 10))
    assert all("`test_" in text for _, text in promises)


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_a_named_test_exists(file: str, test: str) -> None:
    assert re.search(rf"^(async )?def {test}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
