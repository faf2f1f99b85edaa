"""What text refers to is in this repository: pages, headings, promises, quirks and tests; or it is a full citation."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs", "s3_agent", "retrieval_server", "tests", "scripts", "examples", "benchmarks", "findings")
SUFFIXES = {".py", ".md", ".yaml", ".yml", ".sh", ".toml", ".j2", ".txt"}
SECTION = "\N{SECTION SIGN}"
CITATION = re.compile(
    rf"(?:arXiv \d{{4}}\.\d{{5}}(?:v\d+)?|[\w.-]+/[\w.-]+ at `?[0-9a-f]{{7,40}}`?),? {SECTION}\d[\d.]*"
)
"""A paper or a repository's commit, and its section."""
PAGE = re.compile(r"docs/([\w-]+\.md)(?:#([\w-]+)((?: (?:and|to) #[\w-]+)*))?")
PROMISE = re.compile(r"(?:docs/promises\.md,|\bpromises?) (\d+)(?: (?:and|to) (\d+))?")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def _texts() -> list[Path]:
    below = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))
    return sorted(path for path in (*ROOT.glob("*"), *below) if path.suffix in SUFFIXES and path.is_file())


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        yield f"{path.relative_to(ROOT)}:{number}", line


def _without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors of a page: its headings as GitHub names them, and those that are written down."""
    text = _without_code(page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ +(.*)$", text, re.MULTILINE)
    named = (re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)
    return frozenset([*named, *re.findall(r'<a id="([^"]+)"></a>', text)])


def unresolved(line: str) -> list[str]:
    """What a line of any text file refers to that is neither here nor a full citation."""
    problems = [SECTION] if SECTION in CITATION.sub("", line) else []
    for match in PAGE.finditer(line):
        page = ROOT / "docs" / match[1]
        wanted = [*([match[2]] if match[2] else []), *re.findall(r"#([\w-]+)", match[3] or "")]
        if not page.is_file() or not anchors(page).issuperset(wanted):
            problems.append(match[0])
    for match in PROMISE.finditer(line):
        if not _promises().issuperset(int(number) for number in match.groups() if number):
            problems.append(match[0])
    return problems


@cache
def _promises() -> frozenset[int]:
    text = (ROOT / "docs/promises.md").read_text(encoding="utf-8")
    return frozenset(int(number) for number in re.findall(r"^## (\d+)\.", text, re.MULTILINE))


@pytest.mark.parametrize(
    ("line", "problems"),
    [
        (f"as the paper says (arXiv 2505.14146v1, {SECTION}3.2)", []),
        (f"as its reward does (pat-jj/s3 at 8420538, {SECTION}4)", []),
        (f"as it says (spec {SECTION}3.2)", [SECTION]),
        (f"as it says (arXiv 2505.14146; spec {SECTION}1)", [SECTION]),
        ("see docs/originals.md#b3 and #c6", []),
        ("see docs/originals.md#b3 and #z9", ["docs/originals.md#b3 and #z9"]),
        ("see docs/data.md#the-rag-cache", []),
        ("see docs/data.md#the-rag-cash", ["docs/data.md#the-rag-cash"]),
        ("see docs/no-such-page.md.", ["docs/no-such-page.md"]),
        ("never a reward (docs/promises.md, 1 to 3)", []),
        ("never a reward (docs/promises.md, 1 to 99)", ["docs/promises.md, 1 to 99"]),
        ("which is promise 99", ["promise 99"]),
    ],
)
def test_what_leads_nowhere_is_found(line: str, problems: list[str]) -> None:
    assert unresolved(line) == problems


def test_every_reference_resolves_or_is_a_full_citation() -> None:
    texts = [path for path in _texts() if path != Path(__file__)]  # whose examples lead nowhere on purpose
    assert len(texts) > 400
    assert [(place, bad) for path in texts for place, line in _lines(path) for bad in unresolved(line)] == []


def test_no_page_writes_a_gateways_key_into_a_command() -> None:
    """Every user of a machine reads it with `ps`."""
    pages = [path for path in _texts() if path.suffix in (".md", ".sh")]
    written = re.compile(r"gateway.*[\s'\"`.]key=(?!\$\{oc\.env:)")
    assert [place for page in pages for place, line in _lines(page) if written.search(line)] == []


def test_every_relative_link_resolves() -> None:
    pages = [path for path in _texts() if path.suffix == ".md"]
    links = [(page, link) for page in pages for link in LINK.findall(_without_code(page.read_text(encoding="utf-8")))]
    local = [(page, link) for page, link in links if not re.match(r"[a-z]+:", link)]
    assert len(local) > 30
    broken = []
    for page, link in local:
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert broken == []


def test_every_quirk_has_a_number_of_its_own_and_names_tests_that_exist() -> None:
    page = (ROOT / "docs/originals.md").read_text(encoding="utf-8")
    rows = re.findall(r'^\| <a id="(\w+)"></a>(\w+) \|(.*)$', page, re.MULTILINE)
    numbers = [number for _, number, _ in rows]
    assert len(set(numbers)) == len(rows) == page.count("<a id=") > 50
    assert all(anchor == number.lower() for anchor, number, _ in rows)
    there = {name for path in (ROOT / "tests").rglob("*.py") for name in _tests(path)}
    named = {number: re.findall(r"`(test_\w+)`", row) for number, _, row in rows}
    assert {number: lost for number, tests in named.items() if (lost := set(tests) - there)} == {}
    assert [number for number, tests in named.items() if not tests] == ["d12", "f7"]


@cache
def _tests(path: Path) -> frozenset[str]:
    return frozenset(re.findall(r"^(?:async )?def (test_\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE))
