"""A hybrid index: rankings fused by reciprocal rank, equal to the plain sum; parts built, taken and checked."""

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from benchmarks.untrained_encoder import save_untrained_bert

pytest.importorskip("torch")

from retrieval_server.backends.base import stages_of
from retrieval_server.backends.bm25.kind import Bm25Kind
from retrieval_server.backends.bm25.settings import Bm25Settings
from retrieval_server.backends.dense.vectors import RECORD
from retrieval_server.backends.fusion import FUSION, STAGE
from retrieval_server.backends.hybrid.index import Hybrid
from retrieval_server.backends.hybrid.settings import HybridSettings
from retrieval_server.config import index_settings
from retrieval_server.corpus import Corpus
from retrieval_server.errors import RetrievalError
from retrieval_server.index_kinds import MANIFEST, kind_of
from retrieval_server.indexing import build_index, load_index, open_backend, verify_index
from retrieval_server.indexing.build import convert_index
from retrieval_server.rerankers import RerankSettings
from retrieval_server.reranking.stage import Reranked
from retrieval_server.schemas import Document
from tests.tiny_models import WORDS

DEPTH = 6


class Ranked:
    """Each query is the number of a ranking."""

    ignores_whitespace: ClassVar[bool] = True

    def __init__(self, rankings: Sequence[Sequence[int]]) -> None:
        self._rankings = rankings

    def search(self, queries: Sequence[str], *, topk: int) -> list[list[tuple[int, float]]]:
        ranked = (self._rankings[int(query)] for query in queries)
        return [[(row, 10.0 - rank) for rank, row in enumerate(rows)][:topk] for rows in ranked]

    def cost(self, query: str) -> int:
        return len(self._rankings)


def hybrid_settings(weights: Sequence[float] = (1.0, 1.0), **more: Any) -> HybridSettings:
    parts = {f"p{number}": {"index": {"kind": "bm25"}, "weight": weight} for number, weight in enumerate(weights)}
    return HybridSettings.model_validate({"parts": parts, "depth": DEPTH} | more)


RANKING = st.permutations(range(10)).flatmap(lambda rows: st.integers(0, 10).map(lambda end: list(rows[:end])))


@given(
    rankings=st.lists(st.tuples(RANKING, RANKING, RANKING), min_size=1, max_size=4),
    weights=st.tuples(*[st.sampled_from([0.25, 0.5, 1.0, 3.0])] * 3),
    constant=st.integers(0, 100),
    topk=st.integers(1, 20),
)
@settings(max_examples=200, deadline=None)
def test_a_ranking_is_the_sum_of_weighted_reciprocal_ranks(
    rankings: list[tuple[list[int], ...]], weights: tuple[float, ...], constant: int, topk: int
) -> None:
    parts = {f"p{part}": Ranked([lists[part] for lists in rankings]) for part in range(3)}
    backend = Hybrid(parts, hybrid_settings(weights, constant=constant))
    queries = [str(number) for number in range(len(rankings))]
    found = backend.search(queries, topk=topk)
    for lists, hits in zip(rankings, found, strict=True):
        exact: dict[int, Fraction] = {}
        for rows, weight in zip(lists, weights, strict=True):
            for rank, row in enumerate(rows[:DEPTH], start=1):
                exact[row] = exact.get(row, Fraction(0)) + Fraction(weight) / (constant + rank)
        for row, score in hits:
            assert score == pytest.approx(float(exact[row]), rel=1e-12)
            wanted = {f"p{part}": 10.0 - rows.index(row) for part, rows in enumerate(lists) if row in rows[:DEPTH]}
            assert stages_of(score, "?") == {**wanted, STAGE: score}
        order = [row for row, _ in sorted(exact.items(), key=lambda hit: (-round(hit[1], 12), hit[0]))]
        near = {row: round(float(exact[row]), 12) for row in exact}
        assert [near[row] for row, _ in hits] == [near[row] for row in order][:topk]
    assert found == [hits[:topk] for hits in backend.search(queries, topk=3 * DEPTH)], (
        "a short answer begins a long one"
    )


def test_equal_scores_come_in_the_order_of_their_rows() -> None:
    backend = Hybrid({"p0": Ranked([[7, 3]]), "p1": Ranked([[3, 7]])}, hybrid_settings())
    assert [row for row, _ in backend.search(["0"], topk=2)[0]] == [3, 7]


def test_each_stages_time_has_a_name_of_its_own_also_behind_a_reranker() -> None:
    texts = [Document(id="0", title="", text="a", contents="a")]

    class Same:
        def scores(self, asked: Sequence[tuple[str, Sequence[str]]]) -> list[list[float]]:
            return [[1.0 for _ in texts] for _, texts in asked]

    inner = Hybrid({"p0": Ranked([[0]]), "p1": Ranked([[0]])}, hybrid_settings())
    backend = Reranked(inner, Same(), texts, RerankSettings(style="same", candidates=DEPTH), name="hybrid")
    seen: list[str] = []
    backend.observe_with(lambda stage, seconds: seen.append(stage))
    [[(_, score)]] = backend.search(["0"], topk=1)
    assert seen == ["p0", "p1", FUSION, "hybrid", "rerank"]
    assert stages_of(score, "?") == {"p0": 10.0, "p1": 10.0, STAGE: 2 / 61, "rerank": 1.0}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    rows = [{"id": f"d{row}", "title": "T", "text": " ".join(rng.choice(WORDS, size=6))} for row in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Corpus(path)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> HybridSettings:
    import torch

    torch.manual_seed(0)
    model = tmp_path_factory.mktemp("model")
    save_untrained_bert(model, ["query", "passage", ":", *WORDS], dimension=32, layers=1, heads=2, spread=0.5)
    return HybridSettings.model_validate(
        {
            "parts": {
                "terms": {"index": {"kind": "bm25", "k1": 1.2}},
                "vectors": {
                    "index": {"kind": "dense", "encoder": {"model": str(model)}, "layout": "flat"},
                    "weight": 2.0,
                },
            },
            "depth": 20,
        }
    )


def parts_alone(corpus: Corpus, chosen: HybridSettings, folder: Path) -> dict[str, Any]:
    """Each part as an index of its own."""
    for name, index in chosen.indexes.items():
        build_index(corpus, folder / name, index)
    return {name: load_index(corpus, folder / name, index) for name, index in chosen.indexes.items()}


def test_a_built_index_fuses_what_its_parts_find_alone(corpus: Corpus, chosen: HybridSettings, tmp_path: Path) -> None:
    build_index(corpus, tmp_path / "index", chosen)
    manifest = verify_index(Corpus(corpus.path), tmp_path / "index")
    assert (manifest["backend"], manifest["dimension"]) == ("hybrid", 32)
    assert {"terms", "vectors"} == {name.split("/")[0] for name in manifest["files"] if "/" in name}
    queries = ["river bank", "krone", "nothingofthekind", "old castle"]
    alone = Hybrid(parts_alone(corpus, chosen, tmp_path / "alone"), chosen)
    backend, described = open_backend(corpus, tmp_path / "index", chosen)
    assert backend.search(queries, topk=10) == alone.search(queries, topk=10)
    assert described["settings"]["parts"]["vectors"]["weight"] == 2.0
    from_manifest, of_manifest = open_backend(corpus, tmp_path / "index")
    assert (from_manifest.search(queries, topk=10), of_manifest) == (backend.search(queries, topk=10), described)
    encoder = chosen.indexes["vectors"].encoder.model  # pyright: ignore[reportAttributeAccessIssue]
    assert kind_of(chosen).models(chosen) == {"parts.vectors.index.encoder": encoder}


def test_a_faiss_file_made_elsewhere_is_found_again_from_another_folder(
    corpus: Corpus, chosen: HybridSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts_alone(corpus, chosen, tmp_path)
    [file] = (tmp_path / "vectors").glob("*.faiss")
    monkeypatch.chdir(file.parent)
    values = chosen.model_dump(mode="json")
    values["parts"]["vectors"]["index"]["file"] = file.name
    settings = HybridSettings.model_validate(values)
    build_index(corpus, tmp_path / "index", settings)
    wanted = load_index(corpus, tmp_path / "index", settings).search(["old castle"], topk=5)
    monkeypatch.chdir(tmp_path)
    assert load_index(corpus, tmp_path / "index").search(["old castle"], topk=5) == wanted


def test_an_index_with_another_part_or_a_damaged_one_is_refused(
    corpus: Corpus, chosen: HybridSettings, tmp_path: Path
) -> None:
    folder = tmp_path / "index"
    build_index(corpus, folder, chosen)
    values = chosen.model_dump(mode="json")
    values["parts"]["terms"]["index"]["k1"] = 0.5
    with pytest.raises(RetrievalError, match="settings is"):
        load_index(corpus, folder, HybridSettings.model_validate(values))
    values = chosen.model_dump(mode="json") | {"depth": 7, "constant": 1.0}
    values["parts"]["terms"]["weight"] = 9.0
    load_index(corpus, folder, HybridSettings.model_validate(values))
    cut = next((folder / "vectors").glob("*.faiss"))
    cut.write_bytes(cut.read_bytes()[:-1])
    with pytest.raises(RetrievalError, match=r"vectors/.*were written"):
        load_index(corpus, folder, chosen)


def test_a_killed_build_keeps_complete_parts_and_shards(
    corpus: Corpus, chosen: HybridSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from retrieval_server.backends.dense import building

    built: list[str] = []
    plain = Bm25Kind.build

    def counted(self: Any, *given: Any, **more: Any) -> Any:
        built.append("terms")
        return plain(self, *given, **more)

    def killed(*given: Any, **more: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Bm25Kind, "build", counted)
    with monkeypatch.context() as patched:
        from retrieval_server.backends.dense import faiss_index

        patched.setattr(faiss_index, "make", killed)
        with pytest.raises(KeyboardInterrupt):
            build_index(corpus, tmp_path / "index", chosen)
    assert (tmp_path / "index.partial" / "vectors" / RECORD).exists()
    with monkeypatch.context() as patched:
        encoded = building.fill
        calls: list[Any] = []

        def refill(*given: Any, rows: Any, **more: Any) -> Any:
            return encoded(*given, rows=lambda *at: calls.append(at), **more)

        patched.setattr(building, "fill", refill)
        build_index(corpus, tmp_path / "index", chosen)
    assert (built, calls) == (["terms"], [])
    build_index(corpus, tmp_path / "whole", chosen)
    assert (tmp_path / "index" / MANIFEST).read_bytes() == (tmp_path / "whole" / MANIFEST).read_bytes()
    left = {path.name for path in (tmp_path / "index").rglob("*") if path.is_file()}
    assert RECORD not in left and "described.json" not in left and "building.json" not in left


def test_a_part_is_taken_from_its_own_index(
    corpus: Corpus, chosen: HybridSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts_alone(corpus, chosen, tmp_path)
    build_index(corpus, tmp_path / "whole", chosen)
    from retrieval_server.backends.dense.kind import DenseKind

    monkeypatch.setattr(DenseKind, "build", lambda *given, **more: pytest.fail("the corpus was encoded again"))
    convert_index(corpus, tmp_path / "vectors", tmp_path / "index", chosen)
    assert (tmp_path / "index" / MANIFEST).read_bytes() == (tmp_path / "whole" / MANIFEST).read_bytes()
    verify_index(Corpus(corpus.path), tmp_path / "index")
    verify_index(Corpus(corpus.path), tmp_path / "vectors")
    other = tmp_path / "other"
    build_index(corpus, other, Bm25Settings(k1=0.1))
    with pytest.raises(RetrievalError, match=r"is the index of no part(.|\n)*What to do"):
        convert_index(corpus, other, tmp_path / "again", chosen)
    with pytest.raises(RetrievalError, match="holds no finished index"):
        convert_index(corpus, tmp_path / "nowhere", tmp_path / "again", chosen)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parts": {"a": {"index": {"kind": "bm25"}}, "fusion": {"index": {"kind": "bm25"}}}}, "needs another name"),
        ({"parts": {"a": {"index": {"kind": "bm25"}}}}, "two indexes or more"),
        ({"parts": {"a": {"index": {"kind": "bm25"}}, "../b": {"index": {"kind": "bm25"}}}}, "needs another name"),
        ({"parts": {"a": {"index": {"kind": "bm25"}}, "rerank": {"index": {"kind": "bm25"}}}}, "needs another name"),
        ({"parts": {"a": {"index": {"kind": "bm25"}}, "b": {"index": {"kind": "unheard-of"}}}}, "no index kind"),
        (
            {"parts": {"a": {"index": {"kind": "bm25"}}, "b": {"index": {"kind": "bm25"}, "weight": 0}}},
            "greater than 0",
        ),
        ({"depth": 0}, "greater than or equal to 1"),
        ({"constant": -1}, "greater than or equal to 0"),
    ],
)
def test_settings_that_can_not_work_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        index_settings.validate_python(hybrid_settings().model_dump(mode="json") | change)


def test_a_hybrid_in_a_hybrid_and_a_shallow_part_are_refused() -> None:
    engine = {"kind": "qdrant", "url": "http://q", "search": "hybrid", "encoder": {"model": "m"}}
    for inner in (hybrid_settings().model_dump(mode="json"), engine):
        with pytest.raises(ValidationError, match="the part 'a' fuses rankings itself"):
            HybridSettings.model_validate({"parts": {"a": {"index": inner}, "b": {"index": {"kind": "bm25"}}}})
    dense = {"kind": "dense", "encoder": {"model": "m"}, "layout": "sq8", "candidates": 50}
    with pytest.raises(ValidationError, match="`candidates` is 50, below the 100"):
        HybridSettings.model_validate({"parts": {"a": {"index": dense}, "b": {"index": {"kind": "bm25"}}}})
    with pytest.raises(ValueError, match="`depth` is 6, below the 7"):
        hybrid_settings().check_topk(7)
