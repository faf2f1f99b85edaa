"""Kinds of index: settings and name agree, and one that is not registered is refused before anything is written."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrieval_server import digests
from retrieval_server.config import index_settings
from retrieval_server.corpus import Corpus
from retrieval_server.errors import RetrievalError
from retrieval_server.index_kinds import INDEX_KINDS, IndexSettings, default_settings, kind_of
from retrieval_server.indexing import build_index
from retrieval_server.indexing.build import convert_index
from retrieval_server.indexing.manifest import beside_identity, said_settings


@pytest.mark.parametrize("name", INDEX_KINDS)
def test_the_settings_of_a_kind_carry_its_name(name: str) -> None:
    assert INDEX_KINDS[name].settings.model_fields["kind"].default == name


def test_the_default_is_registered() -> None:
    assert kind_of(default_settings()) is INDEX_KINDS[default_settings().kind]


def test_a_kind_that_is_not_registered_is_neither_built_nor_converted(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"id": "0", "contents": "A harbour."}\n')
    corpus, unknown = Corpus(tmp_path / "corpus.jsonl"), IndexSettings(kind="unheard-of")
    with pytest.raises(RetrievalError, match=r"there is no index kind 'unheard-of'.*\n.*install the package"):
        build_index(corpus, tmp_path / "index", unknown)
    with pytest.raises(RetrievalError, match="there is no index kind 'unheard-of'"):
        convert_index(corpus, tmp_path / "other", tmp_path / "index", unknown)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


@given(st.integers(1, 2000), st.integers(1, 2000))
def test_the_longest_list_is_the_largest_that_the_check_allows(depth: int, limit: int) -> None:
    class Settings(IndexSettings, frozen=True):
        kind: str = "some"

        def check_topk(self, topk: int) -> None:
            if topk > depth:
                raise ValueError(topk)

    assert Settings().most(limit) == min(depth, limit)


def foreign(kind: str, path: Path) -> IndexSettings:
    """Settings of an index that was made elsewhere."""
    dense = {"kind": "dense", "encoder": {"model": "m"}, "file": str(path)}
    lucene = {"kind": "lucene", "path": str(path)}
    hybrid = {"kind": "hybrid", "parts": {"a": {"index": dense}, "b": {"index": {"kind": "bm25"}}}}
    return index_settings.validate_python({"dense": dense, "lucene": lucene, "hybrid": hybrid}[kind])


@pytest.mark.parametrize("kind", ["dense", "lucene", "hybrid"])
def test_the_contents_of_an_index_made_elsewhere_are_in_the_fingerprint(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "made"
    file = place if kind != "lucene" else place / "segments_1"
    file.parent.mkdir(exist_ok=True)

    def answers(path: Path = place) -> str:
        index = foreign(kind, path)
        return json.dumps(kind_of(index).answers(index))

    with pytest.raises(RetrievalError, match=r"the index .*made can not be read(.|\n)*What to do"):
        answers()
    file.write_bytes(b"abcd")
    first = answers()
    file.write_bytes(b"abce")
    second = answers()
    file.write_bytes(b"abcd")
    assert answers() == first != second
    place.rename(tmp_path / "moved")
    assert answers(tmp_path / "moved") == first, "the place does not count"


@given(
    data=st.binary(max_size=40), piece=st.integers(1, 5), pieces=st.integers(2, 5), at=st.floats(0, 1, exclude_max=True)
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_digest_reads_a_small_file_whole_and_both_ends_of_a_larger_one(
    tmp_path: Path, data: bytes, piece: int, pieces: int, at: float
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digests, "PIECE_BYTES", piece)
        patch.setattr(digests, "PIECES", pieces)
        file = tmp_path / "file"
        file.write_bytes(data)
        first = digests.digest_of(file)
        assert first["bytes"] == len(data)
        file.write_bytes(data + b"x")
        assert digests.digest_of(file) != first
        if not data:
            return
        place = int(at * len(data)) if len(data) <= piece * pieces else (0 if at < 0.5 else len(data) - 1)
        file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert digests.digest_of(file)["sha256"] != first["sha256"]


def test_a_lock_in_a_lucene_folder_and_the_order_of_its_files_change_no_digest(tmp_path: Path) -> None:
    (tmp_path / "_0.cfs").write_bytes(b"1")
    (tmp_path / "segments_1").write_bytes(b"2")
    first = digests.digest_of(tmp_path)
    (tmp_path / "write.lock").touch()
    assert digests.digest_of(tmp_path) == first
    (tmp_path / "_0.cfs").rename(tmp_path / "_1.cfs")
    assert digests.digest_of(tmp_path) != first


ENCODER = {"encoder": {"model": "m"}}
POSTGRES = {"kind": "pgvector", "url": "postgresql://me@host/db"}
QDRANT = {"kind": "qdrant", "url": "http://host:1"}
SEARCHED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"kind": "bm25"}, {"boolean": True}),
    ({"kind": "dense", **ENCODER}, {"probes": 3, "candidates": 7, "ef_search": 9, "torch_dtype": "int8"}),
    ({**POSTGRES, **ENCODER}, {"ef_search": 40}),
    ({**POSTGRES, **ENCODER, "layout": "binary"}, {"candidates": 40}),
    (
        {**POSTGRES, **ENCODER, "search": "hybrid"},
        {"fused": 30, "rank_constant": 7, "dense_weight": 0.5, "bm25_weight": 2.0},
    ),
    ({**QDRANT, **ENCODER, "quantization": "int8"}, {"rescore": False, "oversampling": 2.0, "ef_search": 40}),
    ({"kind": "lancedb", "url": "/vectors", **ENCODER, "layout": "ivf_rq"}, {"probes": 2, "refine": 3}),
    (
        {"kind": "hybrid"},
        {
            "depth": 30,
            "constant": 7.0,
            "parts": {
                "words": {"index": {"kind": "bm25", "boolean": True}, "weight": 3.0},
                "vectors": {"index": {"kind": "dense", **ENCODER, "probes": 3}, "weight": 0.5},
                "engine": {"index": {**QDRANT, **ENCODER, "ef_search": 40}},
                "made_elsewhere": {"index": {"kind": "dense", **ENCODER, "file": "/e5_Flat.index"}},
                "lucene": {"index": {"kind": "lucene", "path": "/lucene", "k1": 1.2}},
            },
        },
    ),
]


@pytest.mark.parametrize(("built", "searched"), SEARCHED, ids=lambda values: values.get("kind", ""))
def test_a_manifest_gives_the_settings_of_the_search_too(built: dict[str, Any], searched: dict[str, Any]) -> None:
    settings = index_settings.validate_python(built | searched)
    manifest = {"backend": settings.kind, "settings": settings.identity(), **beside_identity(settings)}
    again = said_settings(json.loads(json.dumps(manifest)), Path("index"), remedy="")
    assert (again.identity(), again.answers(), again.place()) == (
        settings.identity(),
        settings.answers(),
        settings.place(),
    )
    for name, value in searched.items():
        assert name == "parts" or getattr(again, name) == value
    of_release_before = {name: value for name, value in manifest.items() if name != "search"}
    if "parts" not in searched:
        assert said_settings(of_release_before, Path("index"), remedy="").identity() == settings.identity()
