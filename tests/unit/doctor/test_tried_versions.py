"""What the doctor knows of versions that were tried, the table of docs/install.md, and the script that tries a set."""

import importlib.util
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3_agent.doctor.tried_versions import STAGES, TRIED, known_to_break

ROOT = Path(__file__).parents[3]


def _script() -> ModuleType:
    """`scripts/` is no package, and an installed one has this name."""
    spec = importlib.util.spec_from_file_location("try_versions", ROOT / "scripts/try_versions.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


try_versions = _script()
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_page_has_the_pins_and_every_set_that_was_tried() -> None:
    page = (ROOT / "docs/install.md").read_text(encoding="utf-8")
    extras = tomllib.loads(PROJECT)["project"]["optional-dependencies"]
    pins = {device: try_versions.pinned("\n".join((*extras["train"], *extras[device]))) for device in ("cpu", "cuda")}
    rows = [
        f"| {name} | {pins['cpu'].get(name, '-')} | {pins['cuda'].get(name, '-')} |"
        for name in sorted(pins["cpu"].keys() | pins["cuda"].keys())
    ]
    assert "\n".join(["|---|---|---|", *rows, ""]) in page
    sets = [("the pinned ones", (), "-"), *((", ".join(one.versions), one.failed, one.why) for one in TRIED)]
    rows = [
        f"| {named} | {' | '.join('breaks' if stage in failed else 'ok' for stage in STAGES)} | {why} |"
        for named, failed, why in sets
    ]
    assert "\n".join([f"| versions | {' | '.join(STAGES)} | why |", "|---|---|---|---|---|---|", *rows, ""]) in page


@pytest.mark.parametrize("version", ["0.9.0", "0.9.0.dev0", "0.9.1", "0.9.1+local", "0.10", "1.0"])
def test_verl_from_0_9_on_is_known_to_break(version: str) -> None:
    found = known_to_break("verl", version, {"verl": "0.8.0"})
    assert found is not None and "create_rl_sampler" in found.why
    assert known_to_break("transformers", version, {"transformers": "5.23.0"}) is None


@pytest.mark.parametrize("version", ["0.8.0", "0.8.1", "0.8.0+local", "0.7", "unknown", ""])
def test_another_verl_is_not(version: str) -> None:
    assert known_to_break("verl", version, {"verl": "0.8.0"}) is None


def test_what_is_pinned_is_never_known_to_break() -> None:
    assert known_to_break("verl", "0.9.1", {"verl": "0.9.1"}) is None


@given(
    st.dictionaries(st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True), st.integers(0, 99).map(lambda n: f"{n}.1"))
)
def test_named_versions_are_read_by_package(named: dict[str, str]) -> None:
    assert try_versions.parsed([f"{name}=={version}" for name, version in named.items()]) == named


@pytest.mark.parametrize("sets", [["verl"], ["verl>=0.9"], ["verl==0.9; x"], ["a==1", "A==2"], ["--index-url=x"]])
def test_what_is_no_exact_version_is_refused(sets: list[str]) -> None:
    with pytest.raises(ValueError):
        try_versions.parsed(sets)


def test_other_pins_take_the_place_of_ours_everywhere() -> None:
    named = {"verl": "0.9.1", "torch": "2.12.0", "ray": "2.61.0", "not-a-package-of-ours": "1.0"}
    changed = tomllib.loads(try_versions.with_versions(PROJECT, named))
    extras = changed["project"]["optional-dependencies"]
    assert {"verl==0.9.1", "torch==2.12.0", "ray[default]==2.61.0", "transformers==5.23.0"} <= set(extras["train"])
    assert {"torch==2.12.0", "torchaudio==2.11.0"} <= set(changed["tool"]["uv"]["override-dependencies"])
    assert "torch==2.12.0" in extras["dense"] and "not-a-package-of-ours==1.0" in changed["project"]["dependencies"]
    assert try_versions.with_versions(PROJECT, {}) == PROJECT


def test_imports_are_found_in_functions_but_not_where_code_has_another_way() -> None:
    text = (
        "import verl.utils, json\nfrom . import verl\n"
        "def run():\n    from verl.trainer.main_ppo import TaskRunner, need_critic\n"
        "try:\n    from verl.old import gone\nexcept ImportError:\n    from verl.new import gone\n"
        "try:\n    from verl.a import b\nexcept ValueError:\n    pass\n"
    )
    assert set(try_versions.imported(text, ("verl",))) == {
        ("verl.utils", ""),
        ("verl.trainer.main_ppo", "TaskRunner"),
        ("verl.trainer.main_ppo", "need_critic"),
        ("verl.a", "b"),
    }


def test_the_first_failure_of_a_report_is_named() -> None:
    case = '<testcase name="{}">{}</testcase>'
    passed, failed = case.format("a", ""), case.format("b", '<failure message="assert 1\n == 2">…</failure>')
    broken = case.format(
        "c", '<error message="assert 1 == 0">E    NameError: x\nE   KeyError: y\nE   assert 1 == 0</error>'
    )
    assert try_versions.failures(f"<testsuites>{passed}</testsuites>") == (0, "")
    assert try_versions.failures(f"<testsuites>{passed}{failed}{broken}</testsuites>") == (2, "b (assert 1 == 2); c")
    assert try_versions.failures(f"<testsuites>{broken}</testsuites>") == (1, "c (KeyError: y)")


def test_the_pinned_set_is_part_of_the_lock() -> None:
    lock = {one["name"]: one.get("version") for one in tomllib.loads((ROOT / "uv.lock").read_text())["package"]}
    extras = tomllib.loads(PROJECT)["project"]["optional-dependencies"]
    for name, version in try_versions.pinned("\n".join(extras["train"])).items():
        assert lock[name] == version
