"""Variants by name: ours, those of installed packages, and every way in which a package can be wrong."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from retrieval_server.errors import RetrievalError
from retrieval_server.registry import OURS, Registry, Variant

GROUP = "test_registry.things"


@dataclass(frozen=True)
class Thing:
    """What this registry holds."""

    name: str


OWN = Thing("own")
Install = Callable[..., None]
MODULES = ("good_things", "bad_things", "exiting_things")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a package with entry points where `importlib.metadata` finds it: `install("name", "1.0", a="module:B")`."""

    def make(package: str, version: str = "1.0", *, place: str = "site", group: str = GROUP, **points: str) -> None:
        folder = tmp_path / place
        info = folder / f"{package.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        lines = "".join(f"{name} = {target}\n" for name, target in points.items())
        (info / "entry_points.txt").write_text(f"[{group}]\n{lines}")
        monkeypatch.syspath_prepend(str(folder))

    site = tmp_path / "site"
    site.mkdir()
    head = f"from {__name__} import Thing\n"
    (site / "good_things.py").write_text(f"{head}ONE, TWO = Thing('one'), Thing('two')\nNUMBER = 1\n")
    (site / "bad_things.py").write_text("import a_module_that_is_not_there\n")
    (site / "exiting_things.py").write_text("raise SystemExit('this machine is not good enough')\n")
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return make


def registry(**own: str) -> Registry[Thing]:
    here = f"{__name__}:OWN"
    return Registry("thing", group=GROUP, own={"own": here, **own}, kind=Thing, error=RetrievalError)


def test_our_own_and_those_of_installed_packages_are_found_by_name(install: Install) -> None:
    install("good-package", "2.1", one="good_things:ONE", two="good_things : TWO")
    found = registry()
    assert [*found] == ["own", "one", "two"] and len(found) == 3 and "two" in found
    assert (found["own"], found["one"], found["two"]) == (OWN, Thing("one"), Thing("two"))
    assert found.variants() == [
        Variant("own", f"{__name__}:OWN", OURS),
        Variant("one", "good_things:ONE", "good-package 2.1"),
        Variant("two", "good_things:TWO", "good-package 2.1"),
    ]


def test_nothing_is_loaded_before_its_name_is_asked_for(install: Install) -> None:
    install("good-package", one="good_things:ONE")
    found = registry()
    assert "one" in found and [*found.variants()] and "good_things" not in sys.modules
    assert found["one"] is found["one"] and "good_things" in sys.modules


def test_entry_points_of_other_groups_are_not_ours(install: Install) -> None:
    install("good-package", group="another.group", one="good_things:ONE")
    assert [*registry()] == ["own"]


def test_an_unknown_name_is_refused_with_the_names_that_there_are(install: Install) -> None:
    install("good-package", harbour="good_things:ONE")
    found = registry()
    with pytest.raises(RetrievalError, match=r"there is no thing 'harbuor'; there are own, harbour\n.*mean harbour\?"):
        found["harbuor"]
    with pytest.raises(RetrievalError, match="install the package of 'xyz'"):
        found["xyz"]
    assert found.get("xyz") is None and found.get("xyz", OWN) is OWN and "xyz" not in found


def test_a_name_that_two_packages_bring_is_refused_with_both(install: Install) -> None:
    install("first-package", "1.0", one="good_things:ONE")
    install("second-package", "0.3", one="good_things:TWO", two="good_things:TWO")
    found = registry()
    with pytest.raises(RetrievalError) as caught:
        found["one"]
    for text in ("first-package 1.0 (good_things:ONE)", "second-package 0.3 (good_things:TWO)", "uninstall one of"):
        assert text in str(caught.value)
    assert found["two"] == Thing("two"), "what else a package brings can be used"
    assert [variant.package for variant in found.variants() if variant.name == "one"] == [
        "first-package 1.0",
        "second-package 0.3",
    ]


def test_a_package_can_not_take_a_name_of_ours(install: Install) -> None:
    install("thief", own="good_things:ONE")
    with pytest.raises(RetrievalError, match=rf"by two packages: {OURS} \(.*\) and thief 1\.0 \(good_things:ONE\)"):
        registry()["own"]


def test_one_package_in_two_folders_of_the_path_is_one(install: Install) -> None:
    install("good-package", "1.0", one="good_things:ONE")
    install("good-package", "1.0", place="elsewhere", one="good_things:ONE")
    assert registry()["one"] == Thing("one")


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("bad_things:ONE", "ModuleNotFoundError: No module named 'a_module_that_is_not_there'"),
        ("exiting_things:ONE", "SystemExit: this machine is not good enough"),
        ("good_things:THREE", "AttributeError: .*THREE"),
        ("good_things", "AttributeError"),
        ("no_such_module:ONE", "ModuleNotFoundError"),
    ],
)
def test_a_broken_package_is_named_with_the_reason_and_stops_no_other(install: Install, target: str, why: str) -> None:
    install("broken-package", "0.9", one=target)
    install("good-package", two="good_things:TWO")
    found = registry()
    with pytest.raises(RetrievalError, match=rf"the package broken-package 0\.9 can not be loaded.*{why}") as caught:
        found["one"]
    assert "repair or uninstall broken-package 0.9" in str(caught.value)
    assert (found["own"], found["two"]) == (OWN, Thing("two"))
    assert [*found.loadable()] == [OWN, Thing("two")]


def test_an_object_of_another_type_is_refused_with_what_it_must_be(install: Install) -> None:
    install("wrong-package", number="good_things:NUMBER")
    with pytest.raises(
        RetrievalError, match=r"'number' of the package wrong-package 1\.0 is a int, not a Thing"
    ) as found:
        registry()["number"]
    assert f"must name a {__name__}.Thing" in str(found.value)
