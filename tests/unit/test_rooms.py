"""docs/rooms.md names every module once, in the section of its room, and no module that is not there."""

import ast
import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("s3_agent", "retrieval_server")


def _holds_code(path: Path) -> bool:
    """Whether a module is more than its docstring."""
    return path.name != "__init__.py" or len(ast.parse(path.read_text(encoding="utf-8")).body) > 1


def listed() -> list[str]:
    """The modules of the page, as paths in the repository."""
    found = []
    for section in re.split(r"^## ", (ROOT / "docs/rooms.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        title = section.partition("\n")[0]
        folder = re.match(r"`([\w/]+/)`", title)
        for name, told in re.findall(r"^\| `([\w/]+\.py)` \| (.+) \|$", section, re.MULTILINE):
            assert told.strip()
            found.append((folder[1] if folder else "s3_agent/") + name)
    return found


def test_the_page_names_every_module_once_and_no_other() -> None:
    named = Counter(listed())
    modules = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if _holds_code(path)
    }
    assert {"missing": sorted(modules - set(named)), "not there": sorted(set(named) - modules)} == {
        "missing": [],
        "not there": [],
    }
    assert [name for name, times in named.items() if times > 1] == []
