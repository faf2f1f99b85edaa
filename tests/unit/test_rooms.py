"""docs/rooms.md names every module once, in the section of its room; and every module that a page names exists."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("s3_agent", "retrieval_server")
GROUPS = frozenset(
    {
        "s3_agent.datasets",
        "retrieval_server.encoders",
        "retrieval_server.rerankers",
        "retrieval_server.web_providers",
    }
)
"""Groups of entry points whose names look like modules that we do not have."""


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


def paths_on(page: str) -> list[str]:
    """The modules and folders of code that a page names by their path below the repository, or below `s3_agent/`."""
    return re.findall(r"`((?:\w+/)*\w+(?:\.py|/))`", page)


def tables_on(page: str) -> dict[str, list[str]]:
    """The modules in the tables of a page whose first column is `module of FOLDER`, by this folder."""
    tables = re.findall(r"^\| module of `([\w/]+)` \|.*\n\|[-| ]+\|\n((?:\|.*\n?)+)", page, re.MULTILINE)
    cells = {folder: [row.split("|")[1] for row in rows.splitlines()] for folder, rows in tables}
    return {folder: re.findall(r"`([^`]*)`", "".join(column)) for folder, column in cells.items()}


def exists(path: str, *folders: str) -> bool:
    return any((ROOT / folder / path).exists() for folder in folders)


def test_every_module_that_the_page_of_concepts_names_exists() -> None:
    named = paths_on((ROOT / "docs/concepts.md").read_text(encoding="utf-8"))
    assert len(named) > 20
    assert [path for path in named if not exists(path, ".", *PACKAGES)] == []


def test_every_module_in_the_table_of_a_page_exists() -> None:
    tables = {page.name: tables_on(page.read_text(encoding="utf-8")) for page in (ROOT / "docs").glob("*.md")}
    named = [(page, folder, path) for page, found in tables.items() for folder in found for path in found[folder]]
    assert len(named) > 15
    wrong = [place for place in named if not place[2].endswith((".py", "/")) or not exists(place[2], place[1])]
    assert wrong == []


def test_every_dotted_name_on_a_page_is_a_module_or_a_name_in_one() -> None:
    wrong: list[str] = []
    for page in sorted((ROOT / "docs").glob("*.md")):
        for name in re.findall(r"`((?:s3_agent|retrieval_server)(?:\.\w+)+)", page.read_text(encoding="utf-8")):
            path, _, last = name.replace(".", "/").rpartition("/")
            module = next((file for file in (f"{path}.py", f"{path}/__init__.py") if exists(file, ".")), None)
            known = module is not None and re.search(rf"\b{last}\b", (ROOT / module).read_text(encoding="utf-8"))
            if (
                not known
                and name not in GROUPS
                and not exists(f"{path}/{last}.py", ".")
                and not exists(f"{path}/{last}", ".")
            ):
                wrong.append(f"{page.name}: {name}")
    assert wrong == []


@pytest.mark.parametrize(
    ("page", "named"),
    [
        (
            "The loop (`agents/base.py`; `types.py`) and `rewards/`, not `episodes.jsonl`",
            "agents/base.py types.py rewards/",
        ),
        ("`s3-agent train`, `a b.py`, `module:Class`", ""),
    ],
)
def test_paths_are_read_from_a_page(page: str, named: str) -> None:
    assert paths_on(page) == named.split()


def test_a_table_of_modules_is_read_from_a_page() -> None:
    table = "| module of `a/b` | what |\n|---|---|\n| `c/d.py`, `e.py` | reads `f.py` |\n"
    other = "| module | what |\n|---|---|\n| `g` | h |\n"
    assert tables_on(f"{table}\n{other}") == {"a/b": ["c/d.py", "e.py"]}
