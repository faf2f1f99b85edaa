"""Dense retrieval: vectors by the formula, exact search as numpy's, every layout, a build that survives a kill."""

import json
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from typer.testing import CliRunner

from benchmarks.untrained_encoder import save_untrained_bert
from retrieval_server.backends.bm25.boolean import parse
from retrieval_server.backends.dense.building import from_vectors
from retrieval_server.backends.dense.faiss_index import blas_threshold
from retrieval_server.backends.dense.plan import costs, expected_recall
from retrieval_server.backends.dense.settings import DenseSettings, EncoderSettings
from retrieval_server.backends.ordering import fetch_ties, ordered
from retrieval_server.config import ServerSettings, read_index_settings
from retrieval_server.corpus import Corpus
from retrieval_server.errors import RetrievalError
from retrieval_server.indexing import build_index, load_index, open_backend, open_corpus, verify_index
from retrieval_server.indexing.build import convert_index, write_index
from retrieval_server.indexing.command import app
from retrieval_server.indexing.manifest import MANIFEST

faiss = pytest.importorskip("faiss")
torch = pytest.importorskip("torch")

WORDS = ["river", "bank", "city", "norway", "krone", "castle", "bridge", "music", "theory", "field", "water", "stone"]
DIMENSION = 32


@pytest.mark.parametrize(("version", "threshold"), [("1.13.2", 3), ("1.14.0", 3 * 768), ("1.15.1", 3 * 768)])
def test_faiss_is_given_its_threshold_in_the_unit_of_its_release(version: str, threshold: int) -> None:
    assert blas_threshold(version, 768) == threshold


def test_the_installed_faiss_counts_in_the_unit_that_we_take_it_for() -> None:
    """Its own default is 20 queries, or 128,000 numbers."""
    code = "import faiss; print(faiss.__version__, faiss.cvar.distance_compute_blas_threshold)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    version, default = done.stdout.split()
    assert (int(default) > 1000) == (blas_threshold(version, 768) > 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 32 dimensions with random weights."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    words = ["query", "passage", ":", '"', *WORDS]
    save_untrained_bert(folder, words, dimension=DIMENSION, layers=2, heads=2, spread=0.5)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    texts = [" ".join(rng.choice(WORDS, size=6)) for _ in range(300)]
    path.write_text("".join(json.dumps({"title": "T", "text": text}) + "\n" for text in texts), encoding="utf-8")
    return Corpus(path)


@pytest.fixture(scope="module")
def vectors(corpus: Corpus) -> Any:
    rows = np.random.default_rng(1).standard_normal((len(corpus), DIMENSION)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def e5(model: Path, **others: Any) -> DenseSettings:
    return DenseSettings(encoder=EncoderSettings.e5(str(model)), **others)


def exact(vectors: Any, queries: Any, topk: int) -> list[list[int]]:
    return np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :topk].tolist()


def rows_of(found: Any) -> list[list[int]]:
    return [[row for row, _ in hits] for hits in found]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_vectors_are_the_models_states_pooled(model: Path, pooling: Any) -> None:
    from transformers import AutoModel, AutoTokenizer

    from retrieval_server.backends.dense.encoder import Encoder

    texts = ["river bank", "castle", "krone norway city water stone music"]
    encoder = Encoder(EncoderSettings.e5(str(model), pooling=pooling, max_tokens=7))
    tokenizer, bert = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()
    for ours, prefix in ((encoder.queries, "query: "), (encoder.passages, "passage: ")):
        for text, vector in zip(texts, ours(texts), strict=True):
            tokens = tokenizer(prefix + text, truncation=True, max_length=7, return_tensors="pt")
            with torch.no_grad():
                states = bert(**tokens).last_hidden_state[0]
            wanted = states.mean(dim=0) if pooling == "mean" else states[0]
            np.testing.assert_allclose(vector, (wanted / wanted.norm()).numpy(), atol=1e-5)


@given(lengths=st.lists(st.integers(1, 600), max_size=80), padding=st.integers(0, 500))
def test_texts_are_computed_once_in_batches_of_like_length(lengths: list[int], padding: int) -> None:
    from retrieval_server.backends.dense.encoder import BATCH_TOKENS, batches

    made = list(batches(lengths, padding))
    assert sorted(row for batch in made for row in batch) == list(range(len(lengths)))
    falling = [lengths[row] for batch in made for row in batch]
    assert falling == sorted(lengths, reverse=True)

    def fits(rows: list[int]) -> bool:
        longest = lengths[rows[0]]
        return len(rows) * longest <= BATCH_TOKENS and sum(longest - lengths[row] for row in rows) <= padding

    assert all(fits(batch) for batch in made)
    assert not any(fits([*batch, following[0]]) for batch, following in pairwise(made))


def test_a_model_that_is_not_there_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    from retrieval_server.backends.dense.encoder import Encoder

    with pytest.raises(RetrievalError, match=r"can not be loaded(.|\n)*What to do"):
        Encoder(EncoderSettings(model=str(tmp_path / "nothing")))


@pytest.mark.parametrize("engine", ["faiss", "torch"])
@pytest.mark.parametrize("count", [1, 3, 40])
def test_flat_search_is_numpys_exact_search(vectors: Any, model: Path, engine: Any, count: int) -> None:
    from retrieval_server.backends.dense.faiss_index import FaissEngine, make
    from retrieval_server.backends.dense.torch_exact import TorchEngine

    queries = np.random.default_rng(2).standard_normal((count, DIMENSION)).astype(np.float32)
    settings = e5(model, chunk=64)
    found = FaissEngine(make(vectors, settings), settings) if engine == "faiss" else TorchEngine(vectors, settings)
    hits = found.search(queries, topk=7)
    assert rows_of(hits) == exact(vectors, queries, 7)
    wanted = np.take_along_axis(queries @ vectors.T, np.array(rows_of(hits)), axis=1)
    np.testing.assert_allclose([[score for _, score in row] for row in hits], wanted, atol=1e-5)
    assert all(len(row) == len(vectors) for row in rows_of(found.search(queries, topk=len(vectors) + 5)))


@given(
    passages=st.integers(1, 700),
    count=st.integers(1, 5),
    topk=st.integers(1, 40),
    chunk=st.sampled_from([1, 16, 100, 256, None]),
    seed=st.integers(0, 99),
)
def test_the_torch_engine_finds_what_numpy_finds_whatever_the_steps_and_blocks(
    passages: int, count: int, topk: int, chunk: int | None, seed: int
) -> None:
    """Some vectors are copies: of these the first rows are wanted."""
    from retrieval_server.backends.dense.torch_exact import TorchEngine

    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((passages, 8)).astype(np.float32)[rng.integers(passages, size=passages)]
    queries = rng.standard_normal((count, 8)).astype(np.float32)
    settings = DenseSettings(encoder=EncoderSettings(model="none"), engine="torch", chunk=chunk)
    hits = TorchEngine(rows, settings).search(queries, topk=topk)
    wanted = exact(rows.astype(np.float64), queries.astype(np.float64), topk)
    scores = rows.astype(np.float64) @ queries.T.astype(np.float64)
    for at, (found, best) in enumerate(zip(hits, wanted, strict=True)):
        of_found = [row for row, _ in found]
        # Different vectors whose scores differ by a rounding error may change places, copies may not.
        assert scores[of_found, at].tolist() == pytest.approx(scores[best, at].tolist(), abs=1e-6)
        assert [score for _, score in found] == pytest.approx(scores[best, at].tolist(), abs=1e-6)
        for place, row in enumerate(of_found):
            earlier = np.flatnonzero((rows[:row] == rows[row]).all(axis=1)).tolist()
            assert set(earlier) <= set(of_found[:place])


def test_the_torch_engine_copies_no_vectors_that_are_as_it_wants_them(vectors: Any, tmp_path: Path) -> None:
    """A memory map stays on the disk, and a tensor where it is."""
    from retrieval_server.backends.dense.torch_exact import TorchEngine

    settings = DenseSettings(encoder=EncoderSettings(model="none"), engine="torch")
    np.save(tmp_path / "vectors.npy", vectors)
    mapped, tensor = np.load(tmp_path / "vectors.npy", mmap_mode="r+"), torch.as_tensor(vectors.copy())
    kept = [TorchEngine(given, settings)._vectors.data_ptr() for given in (mapped, tensor)]
    assert kept == [mapped.ctypes.data, tensor.data_ptr()]
    assert TorchEngine(tensor.half(), settings)._vectors.dtype == torch.float32


def test_no_queries_have_no_hits(vectors: Any) -> None:
    from retrieval_server.backends.dense.torch_exact import TorchEngine

    settings = DenseSettings(encoder=EncoderSettings(model="none"), engine="torch")
    assert TorchEngine(vectors, settings).search(np.empty((0, DIMENSION), dtype=np.float32), topk=3) == []


@pytest.mark.parametrize(("queries", "rows"), [(1, 1 << 20), (64, 1 << 17), (512, 1 << 16)])
def test_the_scores_of_a_step_fit_a_gpus_cache_and_a_step_is_worth_starting(queries: int, rows: int) -> None:
    """At 21M passages and one query 21 steps, and never more than 321."""
    from retrieval_server.backends.dense.torch_exact import rows_per_step, search_bytes

    settings = DenseSettings(
        encoder=EncoderSettings(model="none"), engine="torch", torch_device="cuda", torch_dtype="float16"
    )
    assert rows_per_step(settings, queries) == rows
    assert search_bytes(settings, queries=queries, passages=21_015_324, dimension=768) < 3e9
    compressed = settings.model_copy(update={"torch_dtype": "int8"})
    assert rows_per_step(compressed, queries) == 1 << 16
    assert search_bytes(compressed, queries=queries, passages=21_015_324, dimension=768) > 65536 * 768 * 2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_fewer_bits_keep_most_neighbours(vectors: Any, model: Path, dtype: Any) -> None:
    from retrieval_server.backends.dense.torch_exact import TorchEngine

    queries = np.random.default_rng(2).standard_normal((20, DIMENSION)).astype(np.float32)
    found = rows_of(TorchEngine(vectors, e5(model, torch_dtype=dtype)).search(queries, topk=8))
    shared = [len(set(a) & set(b)) / 8 for a, b in zip(found, exact(vectors, queries, 8), strict=True)]
    assert np.mean(shared) > 0.9


@pytest.mark.parametrize("layout", ["hnsw", "sq8", "pq", "rabitq", "ivf_flat", "ivf_sq8", "ivf_pq", "ivf_rabitq"])
def test_every_layout_finds_the_neighbours_with_their_true_scores(
    vectors: Any, corpus: Corpus, model: Path, tmp_path: Path, layout: Any
) -> None:
    settings = e5(model, layout=layout, lists=4, probes=4, candidates=150, vectors="float32")
    write_index(
        corpus,
        tmp_path / "i",
        settings,
        from_vectors(corpus, settings, rows=lambda start, end: vectors[start:end], dimension=DIMENSION),
    )
    engine: Any = load_index(corpus, tmp_path / "i", settings)
    hits = engine._engine.search(vectors[:20], topk=5)
    wanted = exact(vectors, vectors[:20], 5)
    shared = [len(set(a) & set(b)) / 5 for a, b in zip(rows_of(hits), wanted, strict=True)]
    assert np.mean(shared) > 0.9 and [row[0] for row in rows_of(hits)] == list(range(20))
    for query, row in zip(vectors[:20], hits, strict=True):
        for number, score in row:
            assert score == pytest.approx(float(vectors[number] @ query), abs=1e-4)
    assert all(number >= 0 for row in rows_of(engine._engine.search(vectors[:2], topk=500)) for number in row)


def test_a_graph_is_the_same_with_any_number_of_threads(model: Path) -> None:
    from retrieval_server.backends.dense.faiss_index import make

    many = np.random.default_rng(0).standard_normal((4000, DIMENSION)).astype(np.float32)
    made: list[bytes] = []
    threads = faiss.omp_get_max_threads()
    try:
        for count in (1, 3):
            faiss.omp_set_num_threads(count)
            made.append(faiss.serialize_index(make(many, e5(model, layout="hnsw"))).tobytes())
            assert faiss.omp_get_max_threads() == count
    finally:
        faiss.omp_set_num_threads(threads)
    assert made[0] == made[1]


def test_an_existing_faiss_file_is_opened_as_it_is(vectors: Any, corpus: Corpus, model: Path, tmp_path: Path) -> None:
    for name, kind in (("e5_Flat.index", "Flat"), ("e5_HNSW64.index", "HNSW64")):
        index = faiss.index_factory(DIMENSION, kind, faiss.METRIC_INNER_PRODUCT)
        index.add(vectors)
        faiss.write_index(index, str(tmp_path / name))
        settings = e5(model, file=tmp_path / name)
        backend, manifest = open_backend(corpus, tmp_path / "none", settings)
        assert manifest["backend"] == "dense" and backend.search(["river bank"], topk=3)
        index = faiss.index_factory(DIMENSION, kind, faiss.METRIC_INNER_PRODUCT)
        index.add(vectors[:9])
        faiss.write_index(index, str(tmp_path / name))
        with pytest.raises(RetrievalError, match=r"holds 9 vectors, the corpus 300(.|\n)*What to do"):
            load_index(corpus, tmp_path / "none", settings)


def given_index(path: Path, vectors: Any, kind: str, *, ids: Any = None, metric: int | None = None) -> Path:
    """A FAISS file as others make it."""
    index = faiss.index_factory(DIMENSION, kind, faiss.METRIC_INNER_PRODUCT if metric is None else metric)
    index.train(vectors)
    if ids is None:
        index.add(vectors)
    else:
        index.add_with_ids(vectors, np.asarray(ids, dtype=np.int64))
    faiss.write_index(index, str(path))
    return path


def named_corpus(path: Path, ids: Any) -> Corpus:
    rows = ({"id": str(one), "title": "T", "text": f"passage {one}"} for one in ids)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Corpus(path)


def engine_of(corpus: Corpus, settings: DenseSettings) -> Any:
    backend: Any = load_index(corpus, Path("none"), settings)
    return backend._engine


SHUFFLED = np.random.default_rng(5).permutation(300)


@pytest.mark.parametrize("kind", ["IDMap,Flat", "IDMap2,HNSW16", "IVF4,Flat", "PCA32,IVF4,Flat", "IDMap,IVF4,Flat"])
@pytest.mark.parametrize(
    ("ids", "names"),
    [
        (np.arange(300), np.arange(300)),
        (np.arange(300), [f"doc{number}" for number in range(300)]),
        (np.arange(300) + 1, np.arange(300) + 1),
        (np.arange(300) * 7 + 1000, np.arange(300) * 7 + 1000),
    ],
    ids=["rows", "rows, other names", "from 1", "far"],
)
def test_a_given_id_is_a_row_or_the_id_of_a_passage(
    vectors: Any, model: Path, tmp_path: Path, kind: str, ids: Any, names: Any
) -> None:
    path = given_index(tmp_path / "given.index", vectors, kind, ids=ids)
    settings = e5(model, file=path, probes=4)
    corpus = named_corpus(tmp_path / "c.jsonl", names)
    found = engine_of(corpus, settings).search(vectors, topk=1)
    assert [row for [(row, _)] in found] == list(range(300))
    convert_index(corpus, path, tmp_path / "converted", e5(model, vectors="float32"))
    np.testing.assert_allclose(np.load(tmp_path / "converted" / "vectors.npy"), vectors, atol=1e-5)


@pytest.mark.parametrize("kind", ["IDMap,Flat", "IVF4,Flat"])
def test_ids_in_another_order_are_those_of_the_passages(vectors: Any, model: Path, tmp_path: Path, kind: str) -> None:
    """The index's vectors lie in another order than the corpus's passages; ids tell which is which."""
    names = 1000 + np.arange(300)
    path = given_index(tmp_path / "given.index", vectors[SHUFFLED], kind, ids=names[SHUFFLED])
    corpus = named_corpus(tmp_path / "c.jsonl", names)
    found = engine_of(corpus, e5(model, file=path, probes=4)).search(vectors, topk=1)
    assert [row for [(row, _)] in found] == list(range(300))
    convert_index(corpus, path, tmp_path / "converted", e5(model, vectors="float32"))
    np.testing.assert_allclose(np.load(tmp_path / "converted" / "vectors.npy"), vectors, atol=1e-5)


@pytest.mark.parametrize("kind", ["IDMap,Flat", "IDMap2,Flat", "IVF4,Flat"])
@pytest.mark.parametrize("ids", [np.arange(300) + 1, np.arange(300) + 1000, np.zeros(300), np.arange(300) - 1])
def test_ids_that_are_neither_are_refused(
    vectors: Any, corpus: Corpus, model: Path, tmp_path: Path, kind: str, ids: Any
) -> None:
    path = given_index(tmp_path / "given.index", vectors, kind, ids=ids)
    with pytest.raises(RetrievalError, match=r"neither the numbers of the corpus's rows(.|\n)*What to do"):
        load_index(corpus, tmp_path / "none", e5(model, file=path))
    with pytest.raises(RetrievalError, match="neither the numbers of the corpus's rows"):
        convert_index(corpus, path, tmp_path / "converted", e5(model))


@pytest.mark.parametrize("kind", ["Flat", "HNSW16", "IVF4,Flat", "IDMap,Flat"])
def test_distances_are_scores_with_the_nearest_best(
    vectors: Any, corpus: Corpus, model: Path, tmp_path: Path, kind: str
) -> None:
    ids = np.arange(300) if "IDMap" in kind else None
    path = given_index(tmp_path / "l2.index", vectors, kind, ids=ids, metric=faiss.METRIC_L2)
    found = engine_of(corpus, e5(model, file=path, probes=4)).search(vectors[:20], topk=5)
    assert rows_of(found) == exact(vectors, vectors[:20], 5)
    for hits in found:
        scores = [score for _, score in hits]
        assert scores == sorted(scores, reverse=True) and scores[0] == pytest.approx(0, abs=1e-5) and scores[4] < -0.1


def test_another_metric_is_refused(vectors: Any, corpus: Corpus, model: Path, tmp_path: Path) -> None:
    path = given_index(tmp_path / "l1.index", vectors, "Flat", metric=faiss.METRIC_L1)
    with pytest.raises(RetrievalError, match=r"FAISS's metric 2(.|\n)*What to do"):
        load_index(corpus, tmp_path / "none", e5(model, file=path))


def test_distances_between_vectors_of_unlike_lengths_are_not_converted(
    vectors: Any, corpus: Corpus, model: Path, tmp_path: Path
) -> None:
    convert = [corpus, tmp_path / "l2.index", tmp_path / "converted", e5(model)]
    given_index(tmp_path / "l2.index", vectors, "Flat", metric=faiss.METRIC_L2)
    convert_index(*convert)
    given_index(tmp_path / "l2.index", vectors * (1 + np.arange(300)[:, None]), "Flat", metric=faiss.METRIC_L2)
    with pytest.raises(RetrievalError, match=r"unlike lengths(.|\n)*What to do"):
        convert_index(*convert)


@pytest.mark.parametrize(
    "kind", ["LSH", "IDMap,LSH", "PQ8x4", "IDMap,PQ8x4fs", "SQ8", "IVF4,SQ8", "PCA16,Flat", "RaBitQ", "IVF4,PQ8x4fs"]
)
def test_compressed_vectors_are_not_converted(
    vectors: Any, corpus: Corpus, model: Path, tmp_path: Path, kind: str
) -> None:
    ids, metric = np.arange(300) if "IDMap" in kind else None, faiss.METRIC_L2 if "LSH" in kind else None
    path = given_index(tmp_path / "g.index", vectors, kind, ids=ids, metric=metric)
    with pytest.raises(RetrievalError, match=r"holds compressed vectors(.|\n)*What to do"):
        convert_index(corpus, path, tmp_path / "converted", e5(model))


@pytest.mark.parametrize("kind", ["SQfp16", "HNSW16", "HNSW16,RFlat", "IVF4,Flat", "IVF4,SQfp16"])
def test_whole_vectors_are_converted(vectors: Any, corpus: Corpus, model: Path, tmp_path: Path, kind: str) -> None:
    path = given_index(tmp_path / "g.index", vectors, kind)
    convert_index(corpus, path, tmp_path / "converted", e5(model))
    np.testing.assert_allclose(np.load(tmp_path / "converted" / "vectors.npy"), vectors, atol=1e-3)


@pytest.mark.parametrize("kind", ["HNSW16", "IDMap,HNSW16", "PCA16,HNSW16", "IDMap2,PCA16,HNSW16", "HNSW16,RFlat"])
def test_the_effort_of_a_search_reaches_through_every_layer(
    vectors: Any, corpus: Corpus, model: Path, tmp_path: Path, kind: str
) -> None:
    ids = np.arange(300) if "IDMap" in kind else None
    path = given_index(tmp_path / "given.index", vectors, kind, ids=ids)
    engine = engine_of(corpus, e5(model, file=path, ef_search=77))  # lives as long as what is taken out of it
    layer = engine._index
    while not hasattr(layer := faiss.downcast_index(layer), "hnsw"):
        layer = layer.base_index if hasattr(layer, "base_index") else layer.index
    assert layer.hnsw.efSearch == 77


@pytest.mark.parametrize("kind", ["IVF8,Flat", "IDMap,IVF8,Flat", "PCA16,IVF8,Flat", "IDMap,PCA16,IVF8,SQ8"])
def test_so_do_probes(vectors: Any, corpus: Corpus, model: Path, tmp_path: Path, kind: str) -> None:
    ids = np.arange(300) if "IDMap" in kind else None
    path = given_index(tmp_path / "given.index", vectors, kind, ids=ids)
    for probes, wanted in ((3, 3), (64, 8)):
        engine = engine_of(corpus, e5(model, file=path, probes=probes))
        assert faiss.extract_index_ivf(engine._index).nprobe == wanted


def test_the_torch_engine_refuses_a_faiss_file(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"reads no FAISS file.*index convert"):
        e5(model, engine="torch", file=tmp_path / "e5_Flat.index")


@pytest.mark.parametrize(
    ("layout", "candidates", "fits"), [("pq", 7, False), ("pq", 8, True), ("pq", 0, True), ("flat", 7, True)]
)
def test_candidates_below_topk_are_refused(model: Path, layout: Any, candidates: int, fits: bool) -> None:
    backend = e5(model, layout=layout, candidates=candidates)
    values = {"corpus": "c", "index": "i", "backend": backend, "topk": 8}
    if fits:
        assert ServerSettings.model_validate(values)
    else:
        with pytest.raises(ValidationError, match="`candidates` is 7, below the 8 requested passages"):
            ServerSettings.model_validate(values)


COPIES = 60


@pytest.fixture(scope="module")
def copied(vectors: Any) -> Any:
    """Rows 100 … 159 are one passage, and so are rows 200 … 202 and the first."""
    rows = vectors.copy()
    rows[100 : 100 + COPIES] = rows[100]
    rows[200:203] = rows[0]
    return rows


@pytest.mark.parametrize("engine", ["faiss", "torch"])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_copies_come_in_the_order_of_their_rows_whatever_else_is_asked(
    copied: Any, model: Path, engine: Any, dtype: Any
) -> None:
    from retrieval_server.backends.dense.faiss_index import FaissEngine, make
    from retrieval_server.backends.dense.torch_exact import TorchEngine

    settings = e5(model, chunk=37, torch_dtype=dtype)
    found: Any = FaissEngine(make(copied, settings), settings) if engine == "faiss" else TorchEngine(copied, settings)
    noise = np.random.default_rng(3).standard_normal((70, DIMENSION)).astype(np.float32)
    for count in (1, 2, 21, 70):
        for topk in (1, 3, 7, 8, 9, 30, COPIES, COPIES + 5):
            batch = noise[:count].copy()
            batch[count // 2] = copied[100]
            hits = found.search(batch, topk=topk)[count // 2]
            assert [row for row, _ in hits][:COPIES] == list(range(100, 100 + COPIES))[:topk]
            assert len({score for _, score in hits[:COPIES]}) == 1
            batch[count // 2] = copied[0]
            assert [row for row, _ in found.search(batch, topk=topk)[count // 2]][:4] == [0, 200, 201, 202][:topk]


@pytest.mark.parametrize("layout", ["hnsw", "sq8", "pq", "rabitq", "ivf_flat", "ivf_sq8", "ivf_pq", "ivf_rabitq"])
@pytest.mark.parametrize("candidates", [20, 0])
def test_copies_come_in_the_order_of_their_rows_in_every_layout(
    copied: Any, corpus: Corpus, model: Path, tmp_path: Path, layout: Any, candidates: int
) -> None:
    settings = e5(model, layout=layout, lists=4, probes=4, candidates=candidates, vectors="float32")
    write_index(
        corpus,
        tmp_path / "i",
        settings,
        from_vectors(corpus, settings, rows=lambda start, end: copied[start:end], dimension=DIMENSION),
    )
    engine: Any = load_index(corpus, tmp_path / "i", settings)
    [all_hits] = engine._engine.search(copied[100:101], topk=len(copied))
    assert all_hits == sorted(all_hits, key=lambda hit: (-hit[1], hit[0]))
    for topk in (1, 3, 9):
        [hits] = engine._engine.search(copied[100:101], topk=topk)
        assert hits == all_hits[:topk]
        assert not candidates or [row for row, _ in hits] == list(range(100, 100 + topk))


@pytest.mark.parametrize("kind", ["Flat", "HNSW16", "IDMap,Flat", "IVF4,Flat", "SQ8", "L2"])
def test_copies_of_a_given_index_too(copied: Any, corpus: Corpus, model: Path, tmp_path: Path, kind: str) -> None:
    ids = np.arange(300) if "IDMap" in kind else None
    metric = faiss.METRIC_L2 if kind == "L2" else None
    path = given_index(tmp_path / "g.index", copied, "Flat" if kind == "L2" else kind, ids=ids, metric=metric)
    engine = engine_of(corpus, e5(model, file=path, probes=4))
    for topk in (1, 3, 9):
        [hits] = engine.search(copied[100:101], topk=topk)
        assert [row for row, _ in hits] == list(range(100, 100 + topk))


@given(
    scores=st.lists(
        st.lists(st.sampled_from([0.0, 0.5, 0.5000001, 1.0]), min_size=40, max_size=40), min_size=1, max_size=4
    ),
    topk=st.integers(1, 45),
    seed=st.integers(0, 99),
)
def test_ties_are_fetched_to_their_end_by_whatever_chance_an_engine_picks(
    scores: list[list[float]], topk: int, seed: int
) -> None:
    table, rng = np.array(scores), np.random.default_rng(seed)

    def fetch(queries: Any, wanted: int) -> tuple[Any, Any]:
        order = np.stack([np.lexsort((rng.random(40), -table[query])) for query in queries])[:, :wanted]
        return np.take_along_axis(table[queries], order, axis=1), order

    found = fetch_ties(fetch, np.arange(len(table)), topk, most=40)
    for at, (rows, got) in enumerate(found):
        wanted = sorted(range(40), key=lambda row: (-table[at][row], row))[:topk]
        assert [row for row, _ in ordered(rows, got, topk)] == wanted


def test_a_cut_index_is_refused(corpus: Corpus, model: Path, tmp_path: Path) -> None:
    build_index(corpus, tmp_path / "i", e5(model))
    assert load_index(corpus, tmp_path / "i").search(["river"], topk=2)
    for name in ("index.faiss", "vectors.npy"):
        whole = (tmp_path / "i" / name).read_bytes()
        (tmp_path / "i" / name).write_bytes(whole[:-100])
        with pytest.raises(RetrievalError, match=rf"{name} has \d+ bytes(.|\n)*index build"):
            load_index(corpus, tmp_path / "i")
        (tmp_path / "i" / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(RetrievalError, match=r"its hash differs(.|\n)*index build"):
            verify_index(corpus, tmp_path / "i")
        (tmp_path / "i" / name).write_bytes(whole)
    assert verify_index(corpus, tmp_path / "i")["vectors"] == len(corpus)


def test_a_converted_index_has_the_same_vectors(corpus: Corpus, model: Path, tmp_path: Path) -> None:
    build_index(corpus, tmp_path / "flat", e5(model))
    convert_index(corpus, tmp_path / "flat", tmp_path / "sq8", e5(model, layout="sq8"))
    convert_index(corpus, tmp_path / "flat" / "index.faiss", tmp_path / "again", e5(model))
    flat, squeezed = (load_index(corpus, tmp_path / name).search(["river bank"], topk=5)[0] for name in ("flat", "sq8"))
    assert flat[0][1] == pytest.approx(squeezed[0][1], abs=1e-3)
    assert (tmp_path / "again" / "index.faiss").read_bytes() == (tmp_path / "flat" / "index.faiss").read_bytes()


KILLED = """
import os, signal, sys
from pathlib import Path
from retrieval_server.backends.dense import vectors
from retrieval_server.config import read_index_settings
from retrieval_server.corpus import Corpus
from retrieval_server.indexing import build_index

vectors.SHARD = 64
def report(stage, done, total):
    if stage == sys.argv[4] and done >= 128 * (stage == "encoding passages"):
        os.kill(os.getpid(), signal.SIGKILL)
build_index(Corpus(Path(sys.argv[1])), Path(sys.argv[2]), read_index_settings(Path(sys.argv[3])), report=report)
"""


@pytest.mark.parametrize("layout", ["flat", "ivf_rabitq"])
def test_a_killed_build_goes_on_to_the_same_bytes(corpus: Corpus, model: Path, tmp_path: Path, layout: str) -> None:
    settings = tmp_path / "dense.yaml"
    encoder = {"model": str(model), "query_prefix": "query: ", "passage_prefix": "passage: "}
    settings.write_text(yaml.safe_dump({"kind": "dense", "layout": layout, "lists": 4, "encoder": encoder}))

    def built(name: str, stop: str) -> int:
        arguments = [str(corpus.path), str(tmp_path / name), str(settings), stop]
        return subprocess.run([sys.executable, "-c", KILLED, *arguments], env={**os.environ}).returncode

    assert built("whole", "never") == 0
    assert built("killed", "encoding passages") == -signal.SIGKILL
    record = tmp_path / "killed.partial" / "vectors.jsonl"
    done = record.read_text(encoding="utf-8").splitlines()
    assert len(done) == 2 and not (tmp_path / "killed").exists()
    record.write_text("\n".join([*done, '{"start": 128, "sh']), encoding="utf-8")  # a line that the kill has cut
    assert built("killed", "adding vectors") == -signal.SIGKILL
    assert built("killed", "never") == 0
    for name in ("vectors.npy", "index.faiss", "corpus.lines", MANIFEST):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert load_index(corpus, tmp_path / "killed", read_index_settings(settings)).search(["river"], topk=1)


class Killed(BaseException):
    """Stands for a kill: nothing of the build runs after it."""


@pytest.mark.parametrize(
    "stage", ["adding vectors", "reading corpus.lines", "reading index.faiss", "reading vectors.npy", "put in place"]
)
def test_a_kill_at_any_stage_loses_no_vectors(
    corpus: Corpus, model: Path, tmp_path: Path, vectors: Any, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def rows(start: int, end: int) -> Any:
        asked.append(start)
        return vectors[start:end]

    def report(now: str, done: int, total: int) -> None:
        if now == stage:
            raise Killed

    def build(report: Any) -> None:
        write_index(
            corpus,
            tmp_path / "i",
            e5(model),
            from_vectors(corpus, e5(model), rows=rows, dimension=DIMENSION, report=report),
            report,
        )

    with monkeypatch.context() as patched, pytest.raises(Killed):
        if stage == "put in place":
            patched.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(Killed()))
        build(report)
    assert asked == [0] and not (tmp_path / "i").exists()
    build(lambda *_: None)
    assert asked == [0]
    assert verify_index(corpus, tmp_path / "i")["vectors"] == 300
    assert sorted(path.name for path in tmp_path.iterdir()) == ["i"]
    assert not {"vectors.jsonl", "building.json"} & {path.name for path in (tmp_path / "i").iterdir()}


WITHOUT_ROOM = """
import resource, sys
from pathlib import Path
import numpy as np
from retrieval_server.backends.dense.building import from_vectors
from retrieval_server.backends.dense.settings import DenseSettings, EncoderSettings
from retrieval_server.corpus import Corpus
from retrieval_server.errors import RetrievalError
from retrieval_server.indexing.build import write_index

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
def rows(start, end):
    print("asked", start, flush=True)
    return np.ones((end - start, 32), dtype=np.float32)
try:
    settings = DenseSettings(encoder=EncoderSettings(model="none"))
    corpus = Corpus(Path(sys.argv[1]))
    write_index(corpus, Path(sys.argv[2]), settings, from_vectors(corpus, settings, rows=rows, dimension=32))
except RetrievalError as error:
    print(error)
"""


def test_a_full_disk_is_an_error_that_loses_no_vectors(corpus: Corpus, tmp_path: Path) -> None:
    """300 vectors take 19 kB, the index 38 kB: the limit of a file's size stands for the end of the disk."""

    def built(room: int) -> str:
        command = [sys.executable, "-c", WITHOUT_ROOM, str(corpus.path), str(tmp_path / "i"), str(room)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    for room, asked in ((10_000, 0), (25_000, 1), (25_000, 0), (10**9, 0)):
        said = built(room)
        assert said.count("asked") == asked
        assert ("can not be written" in said and "make room" in said) is (room < 10**6)
    assert verify_index(corpus, tmp_path / "i")["vectors"] == 300


def test_a_corpus_opens_by_its_saved_lines_without_being_read(corpus: Corpus, model: Path, tmp_path: Path) -> None:
    stages: list[str] = []

    def opened() -> Corpus:
        stages.clear()
        return open_corpus(path, tmp_path / "i", report=lambda stage, done, total: stages.append(stage))

    path = tmp_path / "corpus.jsonl"
    path.write_bytes(corpus.path.read_bytes())
    build_index(Corpus(path), tmp_path / "i", e5(model))
    assert opened()[299] == corpus[299] and not stages
    with path.open("ab") as file:
        file.write(b'{"title": "T", "text": "more"}\n')
    assert len(opened()) == 301 and stages
    with pytest.raises(RetrievalError, match="another's"):
        load_index(opened(), tmp_path / "i")


def test_the_command_builds_verifies_and_plans(corpus: Corpus, tmp_path: Path) -> None:
    run = CliRunner().invoke
    where = ["--corpus", str(corpus.path), "--index", str(tmp_path / "i")]
    failed = run(app, ["verify", *where])
    assert failed.exit_code == 1 and "no finished index" in failed.output and "index build" in failed.output
    assert run(app, ["build", *where]).exit_code == 0
    assert "300 passages" in run(app, ["verify", *where]).output
    planned = run(app, ["plan", "--passages", "21015324"])
    assert planned.exit_code == 0 and "flat" in planned.output and "64.6" in planned.output
    recalls = expected_recall(passages=21_015_324, candidates=400)
    assert recalls["flat"] == (1.0, 1.0) and "1.000" in planned.output
    assert all(0 < low <= high <= 1 for low, high in recalls.values())
    assert "hnsw" not in recalls and "hnsw" in expected_recall(passages=1_000_000, candidates=400)


@pytest.mark.parametrize("kind", ["rabitq", "pq", "ivf_rabitq", "ivf_pq"])
def test_the_recall_to_expect_is_the_measured_one_and_falls_with_more_passages(kind: str) -> None:
    measured = costs()
    curve = next(row for row in measured["indexes"] if row["kind"] == kind)["by_candidates"]
    many = measured["passages"]

    def expected(passages: int, candidates: int = 400) -> tuple[float, float]:
        return expected_recall(passages=passages, candidates=candidates)[kind]

    assert expected(many) == pytest.approx((curve[str(many)]["400"],) * 2)
    low, high = expected(10 * many)
    assert low < high < expected(many)[0] < expected(10 * many, candidates=10 * 400)[1]


@pytest.mark.parametrize(
    ("query", "matching"),
    [
        ("a AND b", {"ab", "abc"}),
        ("a AND NOT b", {"a", "ac"}),
        ("(a OR b) AND c", {"ac", "bc", "abc"}),
        ('"a c"', {"ac", "abc"}),
        ("NOT a", {"b", "bc", "c"}),
        ("a NOT (b OR c)", {"a"}),
        ("((a AND", {"a", "ab", "ac", "abc"}),
        (") AND OR NOT", set()),
        ("", set()),
    ],
)
def test_boolean_queries_mean_what_they_say(query: str, matching: set[str]) -> None:
    documents = ["a", "b", "c", "ab", "ac", "bc", "abc"]
    clause = parse(query, lambda word: [word] if len(word) == 1 else word.split())
    found = clause.matches(lambda term: np.array([bool(term) and term in document for document in documents]))
    assert {document for document, match in zip(documents, found, strict=True) if match} == matching
