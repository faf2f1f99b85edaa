"""Names from outside become paths only below the folder that they are meant for."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from pydantic import TypeAdapter, ValidationError

from s3_agent.data.published import hub
from s3_agent.data.published.hub import Wanted
from s3_agent.errors import DataError
from s3_agent.names import ContentHash, RelativePath, file_name, hydra_value, literal
from s3_agent.processes.commands import gateway_command
from s3_agent.processes.run_folder import write_recipe
from s3_agent.recipe import load_recipe

WANTED = Wanted(repo="owner/name", patterns=("*",))
HASH = "0123456789abcdef" * 4
HOSTILE = ("..", "../x", "a/../../x", "/etc/x", "a//b", "a/./b", "", "a\\b", "a\x00b", "a\nb", ".")

pieces = st.lists(st.sampled_from(["..", ".", "/", "a", "\\", "\x00", "~", "é", " "]), max_size=6).map("".join)


@pytest.mark.parametrize("name", HOSTILE)
def test_no_path_leads_out_of_its_folder(name: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(RelativePath).validate_python(name)


@given(pieces)
def test_a_path_that_is_taken_stays_below_its_folder(name: str) -> None:
    folder = Path("/folder")
    try:
        taken = TypeAdapter(RelativePath).validate_python(name)
    except ValidationError:
        return
    assert (folder / taken).is_relative_to(folder) and ".." not in (folder / taken).parts
    assert folder / taken != folder


@given(pieces | st.text(max_size=8))
def test_a_file_name_is_one_name(text: str) -> None:
    name = file_name(text)
    assert Path(name).name == name and not name.startswith(".")
    assert file_name(name) == name


@pytest.mark.parametrize("text", ["s3", "search_r1:ret", "nq", "v1.2"])
def test_an_ordinary_name_stays_as_it_is_but_for_what_files_can_not_hold(text: str) -> None:
    assert file_name(text) == text.replace(":", "_")


@pytest.mark.parametrize("value", ["../" + HASH, HASH[:-1], HASH + "\n", HASH.upper(), HASH[:39] + "/", "", "0" * 41])
def test_a_hash_is_hex_digits_alone(value: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(ContentHash).validate_python(value)


@pytest.mark.parametrize(
    "change",
    [
        {"commit": "../../outside"},
        {"commit": "main"},
        {"oid": f"../../../{HASH}"},
        {"oid": None},
        {"path": "../../outside"},
        {"path": "/outside"},
        {"size": -1},
    ],
    ids=str,
)
def test_a_mirror_can_not_name_what_lies_outside_of_the_cache(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"commit": HASH[:40], "oid": HASH, "path": "data/train.jsonl", "size": 1, **change}
    sibling = SimpleNamespace(rfilename=told["path"], size=told["size"], lfs=SimpleNamespace(sha256=told["oid"]))
    info = SimpleNamespace(sha=told["commit"], siblings=[sibling])
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: info)
    with pytest.raises(DataError, match=re.escape(repr(next(iter(change.values()))))) as caught:
        hub.listed(WANTED)
    assert "HF_ENDPOINT" in caught.value.remedy


def test_an_honest_listing_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    sibling = SimpleNamespace(rfilename="data/train.jsonl", size=1, lfs=SimpleNamespace(sha256=HASH))
    small = SimpleNamespace(rfilename="README.md", size=2, lfs=None, blob_id=HASH[:40])
    info = SimpleNamespace(sha=HASH[:40], siblings=[sibling, small])
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: info)
    assert [(file.path, file.lfs) for file in hub.listed(WANTED)] == [("README.md", False), ("data/train.jsonl", True)]


syntax = st.lists(st.sampled_from([*"'\"\\${}[],:= a#%&", "${", "\\${", "é"]), max_size=12).map("".join)


@given(syntax | st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12))
def test_omegaconf_reads_any_text_as_it_stands(text: str) -> None:
    read = OmegaConf.to_container(OmegaConf.create(literal({"a": text, "b": [text]})), resolve=True)
    assert read == {"a": text, "b": [text]}
    written = OmegaConf.to_yaml(OmegaConf.create(literal({"a": text})))
    assert OmegaConf.to_container(OmegaConf.create(written), resolve=True) == {"a": text}


@given(syntax | st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12))
def test_hydra_reads_any_text_as_it_stands(text: str) -> None:
    parser = pytest.importorskip("hydra.core.override_parser.overrides_parser").OverridesParser.create()
    [override] = parser.parse_overrides([f"a.b={hydra_value(text)}"])
    read = OmegaConf.create({"b": override.value()})
    assert OmegaConf.to_container(read, resolve=True) == {"b": text}


AWKWARD = 'it\'s a "${HOME}" [folder], a=b\\'


def test_the_gateways_command_takes_any_path(tmp_path: Path) -> None:
    parser = pytest.importorskip("hydra.core.override_parser.overrides_parser").OverridesParser.create()
    recipe = load_recipe("cpu")
    recipe = recipe.model_copy(update={"policy": recipe.policy.model_copy(update={"model": f"/{AWKWARD}/model"})})
    command = gateway_command(recipe, port=1, folder=tmp_path / AWKWARD)
    values = {override.key_or_group: override.value() for override in parser.parse_overrides(command[3:])}
    read = OmegaConf.create(
        {"model": values["default_proxy.model_name"], "folder": values["hydra.run.dir"], "port": values["port"]}
    )
    assert OmegaConf.to_container(read, resolve=True) == {
        "model": f"/{AWKWARD}/model",
        "folder": str(tmp_path / AWKWARD),
        "port": 1,
    }


def test_a_recipe_is_read_again_as_it_was_written(tmp_path: Path) -> None:
    recipe = load_recipe("cpu", ["agent.limits.max_observation_tokens=null", "judge.max_tokens=null"])
    recipe = recipe.model_copy(update={"runs": tmp_path / AWKWARD})
    write_recipe(tmp_path / "recipe.yaml", recipe)
    assert load_recipe(str(tmp_path / "recipe.yaml")) == recipe
