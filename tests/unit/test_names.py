"""Names from outside become paths only below the folder that they are meant for."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from s3_agent.data import hub
from s3_agent.data.hub import Wanted
from s3_agent.errors import DataError
from s3_agent.names import ContentHash, RelativePath, file_name

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
