"""Kinds of index: settings and name agree, and one that is not registered is refused before anything is written."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval_server.corpus import Corpus
from retrieval_server.errors import RetrievalError
from retrieval_server.index_kinds import INDEX_KINDS, IndexSettings, default_settings, kind_of
from retrieval_server.indexing import build_index
from retrieval_server.indexing.build import convert_index


@pytest.mark.parametrize("name", INDEX_KINDS)
def test_the_settings_of_a_kind_carry_its_name(name: str) -> None:
    assert INDEX_KINDS[name].settings.model_fields["kind"].default == name


def test_the_default_is_registered() -> None:
    assert kind_of(default_settings()) is INDEX_KINDS[default_settings().kind]


def test_a_kind_that_is_not_registered_is_neither_built_nor_converted(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"id": "0", "contents": "A harbour."}\n')
    corpus, settings = Corpus(tmp_path / "corpus.jsonl"), IndexSettings(kind="unheard-of")
    with pytest.raises(RetrievalError, match=r"there is no index kind 'unheard-of'.*\n.*install the package"):
        build_index(corpus, tmp_path / "index", settings)
    with pytest.raises(RetrievalError, match="there is no index kind 'unheard-of'"):
        convert_index(corpus, tmp_path / "other", tmp_path / "index", settings)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


@given(st.integers(1, 2000), st.integers(1, 2000))
def test_the_longest_list_is_the_largest_that_the_check_allows(depth: int, limit: int) -> None:
    class Settings(IndexSettings, frozen=True):
        kind: str = "some"

        def check_topk(self, topk: int) -> None:
            if topk > depth:
                raise ValueError(topk)

    assert Settings().most(limit) == min(depth, limit)
