"""Engines of others as kinds of index: the same contract for each, before what only one of them has.

Postgres is a real server and LanceDB the real library. Qdrant is `qdrant_local_shim`, which is no server of Qdrant's,
and OpenSearch is a fake.
"""

import json
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import schemathesis
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from benchmarks.untrained_encoder import save_untrained_bert
from retrieval_server.app import create_app
from retrieval_server.app.service import Opened
from retrieval_server.backends.base import stages_of
from retrieval_server.backends.bm25.analysis import EnglishAnalyzer
from retrieval_server.backends.dense.encoder import Encoder
from retrieval_server.backends.dense.settings import DenseSettings, EncoderSettings
from retrieval_server.backends.engines import filling, kind
from retrieval_server.backends.engines.store import Batch, Shape
from retrieval_server.backends.engines.vocabulary import Vocabulary
from retrieval_server.config import ServerSettings, index_settings
from retrieval_server.corpus import Corpus, silent
from retrieval_server.errors import QueryError, RetrievalError, Unavailable
from retrieval_server.index_kinds import INDEX_KINDS, IndexSettings, default_settings
from retrieval_server.indexing import build_index, load_index, verify_index
from retrieval_server.indexing.build import convert_index
from retrieval_server.indexing.command import app as index_command
from s3_agent.testing.servers import serve
from tests import served_api
from tests.engines import ENGINES, WAYS, Engine, engine_settings, running_engine
from tests.served_corpus import await_status, command, free_port, write_corpus

WORDS = (
    "norway",
    "krone",
    "oslo",
    "river",
    "nile",
    "city",
    "currency",
    "sweden",
    "harbour",
    "boat",
    "fjord",
    "o'neill",
)
WORDS += ("3.14", "日本", "x_y", "psychology")
AWAY = "does not answer|can not be read"
PASSAGES = 300  # LanceDB trains lists from 256 vectors
TWINS = '"T"\ntwin twin boat'
QUERIES = (
    "krone norway",
    "the river and the o'neill boat",
    "日本 3.14",
    "x_y psychological",
    "sweden",
    "boat boat river",
    "absent",
    "",
    "the",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus with passages that are equal, empty or one word, and an encoder with random weights."""
    import torch

    place, chance = tmp_path_factory.mktemp("engines"), random.Random(0)
    rows = [
        {
            "id": f"p{row}\0" if row == 3 else f"p{row}",
            "contents": f'"T"\n{" ".join(chance.choices(WORDS, k=row % 30))}',
        }
        for row in range(PASSAGES)
    ]
    for row in (50, 120, PASSAGES - 1):
        rows[row]["contents"] = TWINS
    write_corpus(place, rows)
    torch.manual_seed(0)
    save_untrained_bert(
        place / "encoder", ["twin", *filter(str.isalpha, WORDS)], dimension=32, layers=1, heads=2, spread=0.5
    )
    return place


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest, folder: Path) -> Iterator[Engine]:
    with running_engine(request.param) as running:
        running.encoder = str(folder / "encoder")
        yield running


@pytest.fixture
def lexical(engine: Engine) -> None:
    if not engine.lexical:
        pytest.skip("it searches only vectors")


@pytest.fixture
def dense(engine: Engine) -> None:
    if not engine.dense:
        pytest.skip("it searches only words")


@pytest.fixture
def corpus(folder: Path) -> Corpus:
    return Corpus(folder / "corpus.jsonl")


@pytest.fixture(scope="module")
def vectors(folder: Path) -> Path:
    """The passages' vectors as an index of ours."""
    settings = DenseSettings(encoder=EncoderSettings(model=str(folder / "encoder")), vectors="float32")
    build_index(Corpus(folder / "corpus.jsonl"), folder / "vectors", settings)
    return folder / "vectors"


@pytest.fixture
def encoder(folder: Path) -> EncoderSettings:
    return EncoderSettings(model=str(folder / "encoder"))


@pytest.fixture
def built(engine: Engine, corpus: Corpus, tmp_path: Path) -> Callable[..., tuple[Any, IndexSettings]]:
    """Builds an index with these settings, and opens it."""

    def build(name: str, **more: Any) -> tuple[Any, IndexSettings]:
        chosen = engine_settings(engine, name, **more)
        build_index(corpus, tmp_path / name, chosen)
        return load_index(corpus, tmp_path / name, chosen), chosen

    return build


@pytest.fixture(scope="module")
def every(folder: Path) -> Callable[[str], list[float]]:
    """The inner product with every passage, computed plainly."""
    model = Encoder(EncoderSettings(model=str(folder / "encoder")))
    passages = model.passages([passage.contents for passage in Corpus(folder / "corpus.jsonl")])
    return cache(lambda query: (passages @ model.queries([query])[0]).tolist())


@pytest.fixture(scope="module")
def plain(every: Callable[[str], list[float]]) -> Callable[[str, int], list[float]]:
    """The scores of the best."""
    return lambda query, topk: sorted(every(query), reverse=True)[:topk]


def filled(folder: Path, corpus: Corpus, chosen: Any, vectors: Path) -> None:
    """Build the index; one of vectors without encoding the corpus again."""
    if chosen.encoder is None:
        build_index(corpus, folder, chosen)
    else:
        convert_index(corpus, vectors, folder, chosen)


@pytest.fixture(params=["bm25", "dense"])
def content(request: pytest.FixtureRequest, engine: Engine) -> dict[str, Any]:
    """Settings of an index of words, and of one of vectors with the default layout and type."""
    if not {"bm25": engine.lexical, "dense": engine.dense}[request.param]:
        pytest.skip("it does not search so")
    return {"search": request.param}


@pytest.mark.usefixtures("lexical")
def test_words_find_what_our_own_index_finds(built: Any, corpus: Corpus, engine: Engine, tmp_path: Path) -> None:
    backend, _ = built("words")
    build_index(corpus, tmp_path / "ours", default_settings())
    ours = load_index(corpus, tmp_path / "ours")
    for topk in (1, 5, PASSAGES):
        for query, found, wanted in zip(
            QUERIES, backend.search(QUERIES, topk=topk), ours.search(QUERIES, topk=topk), strict=True
        ):
            if engine.bm25_is_lucenes:
                assert [score for _, score in found] == pytest.approx([score for _, score in wanted], rel=1e-5)
                assert [row for row, _ in found] == [row for row, _ in wanted], query
            else:  # lengths are in one byte, and empty passages do not count
                assert len(found) == len(wanted)
                assert [score for _, score in found] == pytest.approx([score for _, score in wanted], rel=0.02)


@pytest.mark.parametrize("way", ["exact", "default", "binary", "ivf_flat", "ivf_rq"])
def test_vectors_find_what_a_plain_computation_finds(
    engine: Engine, way: str, corpus: Corpus, vectors: Path, every: Any, tmp_path: Path
) -> None:
    if way not in WAYS.get(engine.kind, {}):
        pytest.skip("it does not search so")
    chosen = WAYS[engine.kind][way]
    given = engine_settings(engine, f"vectors_{way}", search="dense", **engine.place_of_graphs(), **chosen.settings)
    convert_index(corpus, vectors, tmp_path / "index", given)
    verify_index(corpus, tmp_path / "index")
    backend = load_index(corpus, tmp_path / "index", given)
    queries = QUERIES * 3  # more than there are connections
    recalled = 0
    for query, found in zip(queries, backend.search(queries, topk=10), strict=True):
        scores = every(query)
        assert [score for _, score in found] == pytest.approx([scores[row] for row, _ in found], abs=chosen.error)
        least = sorted(scores, reverse=True)[9]
        recalled += sum(scores[row] >= least - chosen.error for row, _ in found)
        assert len(found) == 10 and found == sorted(found, key=lambda hit: (-hit[1], hit[0]))
    assert recalled >= chosen.recall * 10 * len(queries)
    [found], [alone] = backend.search(QUERIES[:1], topk=10), backend.search(QUERIES[:1], topk=3)
    assert [score for _, score in alone] == pytest.approx([score for _, score in found[:3]], abs=1e-5)


@pytest.mark.parametrize(("layout", "depth"), [("hnsw", "ef_search"), ("binary", "candidates")])
def test_postgres_searches_the_graph_and_not_every_row(engine: Engine, layout: str, depth: str) -> None:
    """A graph gives no more rows than it looks at, a search of the table would."""
    if engine.kind != "pgvector":
        pytest.skip("it has no such graph")
    chosen = engine_settings(engine, "graph", search="dense", layout=layout, **{depth: 12}, **engine.place_of_graphs())
    numbers = np.random.default_rng(0).standard_normal((PASSAGES, 64), dtype=np.float32)
    store = INDEX_KINDS[engine.kind].connect(chosen, Shape(f"graph_{layout}", PASSAGES, 64))  # pyright: ignore[reportAttributeAccessIssue]
    with closing(store):
        store.prepare(fresh=True)
        store.put(Batch(0, [str(row) for row in range(PASSAGES)], numbers, None))
        store.finish(silent)
        assert [len(hits) for hits in store.dense(numbers[:3], 50)] == [12] * 3


def test_equal_passages_come_by_row_also_at_the_cut(built: Any, encoder: Any, engine: Engine) -> None:
    ways: dict[str, dict[str, Any]] = {"equal_words": {}} if engine.lexical else {}
    if engine.dense:
        ways["equal_vectors"] = {"search": "dense", "encoder": encoder.model_dump(), **engine.exact}
    for name, more in ways.items():
        backend, _ = built(name, **more)
        assert [row for row, _ in backend.search([TWINS], topk=3)[0]] == [50, 120, PASSAGES - 1]
        assert [row for row, _ in backend.search([TWINS], topk=1)[0]] == [50]


@pytest.mark.usefixtures("lexical", "dense")
def test_hybrid_is_the_fusion_of_both_lists(
    built: Any, corpus: Corpus, encoder: Any, engine: Engine, tmp_path: Path
) -> None:
    given = {"encoder": encoder.model_dump(), **engine.exact}
    _, chosen = built("hybrid", search="hybrid", fused=20, **given)
    lists = {"dense": built("vectors_alone", search="dense", **given)[0], "bm25": built("words_alone")[0]}
    for weights in ({"dense": 1.0, "bm25": 1.0}, {"dense": 2.0, "bm25": 3.0}):
        update = {f"{name}_weight": weight for name, weight in weights.items()}
        hybrid: Any = load_index(corpus, tmp_path / "hybrid", chosen.model_copy(update=update))
        seen: list[str] = []
        hybrid.observe_with(lambda stage, seconds, seen=seen: seen.append(stage))
        for query in QUERIES:
            ranks: dict[int, float] = {}
            stages: dict[int, dict[str, float]] = {}
            for name, weight in weights.items():
                for rank, (row, score) in enumerate(lists[name].search([query], topk=20)[0], start=1):
                    ranks[row] = ranks.get(row, 0.0) + weight / (60 + rank)
                    stages.setdefault(row, {})[name] = score
            wanted = sorted(ranks.items(), key=lambda hit: (-hit[1], hit[0]))[:8]
            [found] = hybrid.search([query], topk=8)
            assert dict(found) == pytest.approx(dict(wanted)), query
            for row, score in found:
                assert stages_of(score, "?") == pytest.approx({**stages[row], "hybrid": score}, rel=1e-4), query
        assert seen == ["dense", "bm25", "fusion"] * len(QUERIES)


@pytest.mark.usefixtures("dense")
def test_existing_vectors_fill_it_without_the_encoder(
    engine: Engine, corpus: Corpus, encoder: EncoderSettings, plain: Any, vectors: Path, tmp_path: Path
) -> None:
    chosen = engine_settings(engine, "converted", search="dense", encoder=encoder.model_dump(), **engine.exact)
    convert_index(corpus, vectors, tmp_path / "converted", chosen)
    [found] = load_index(corpus, tmp_path / "converted", chosen).search(["krone norway"], topk=5)
    assert [score for _, score in found] == pytest.approx(plain("krone norway", 5), abs=1e-4)
    if engine.lexical:
        with pytest.raises(RetrievalError, match="has no vectors"):
            convert_index(corpus, vectors, tmp_path / "words", engine_settings(engine, "without"))


KILLED = """
import os, signal, sys
from pathlib import Path
from retrieval_server.config import index_settings
from retrieval_server.corpus import Corpus, silent
from retrieval_server.indexing.build import convert_index, build_index

def report(stage, done, total):
    if (stage, done) == (sys.argv[4], int(sys.argv[5])):
        os.kill(os.getpid(), signal.SIGKILL)

corpus, folder, settings = Corpus(Path(sys.argv[1])), Path(sys.argv[2]), index_settings.validate_json(sys.argv[3])
if settings.encoder is None:
    build_index(corpus, folder, settings, report=report)
else:
    convert_index(corpus, Path(sys.argv[6]), folder, settings, report=report)
"""


@pytest.mark.parametrize(("stage", "done"), [("filling the engine", 120), ("building the engine's index", 0)])
def test_a_killed_build_goes_on_where_it_was(
    engine: Engine, content: dict[str, Any], corpus: Corpus, vectors: Path, tmp_path: Path, stage: str, done: int
) -> None:
    name = f"killed_at_{done}_{content['search']}"
    chosen = engine_settings(engine, name, batch=40, **content)

    def run(stage: str) -> int:
        arguments = [str(corpus.path), str(tmp_path / name), chosen.model_dump_json(), stage, str(done), str(vectors)]
        return subprocess.run([sys.executable, "-c", KILLED, *arguments], timeout=90).returncode

    assert run(stage) == -signal.SIGKILL
    record = tmp_path / f"{name}.partial" / "filling.jsonl"
    before = [json.loads(line) for line in record.read_text().splitlines() if line]
    assert [line["start"] for line in before] == list(range(0, done or PASSAGES, 40))
    record.write_text(record.read_text() + '{"start": 120, "en', encoding="utf-8")  # a line that the kill has cut

    filled(tmp_path / name, corpus, chosen, vectors)
    verify_index(corpus, tmp_path / name)
    filled(tmp_path / "whole", corpus, engine_settings(engine, name + "_not", batch=40, **content), vectors)
    written = [(tmp_path / folder / "contents.json").read_bytes() for folder in (name, "whole")]
    assert written[0] == written[1]
    assert not (tmp_path / name / "filling.jsonl").exists()


def test_batches_in_the_record_are_not_written_again(
    engine: Engine, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = engine_settings(engine, "once", batch=40)
    stopped = RuntimeError("the machine stops")

    def stops(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("filling the engine", 120):
            raise stopped

    with pytest.raises(RuntimeError):
        build_index(corpus, tmp_path / "once", chosen, report=stops)
    made, batch = [], filling.Batch
    monkeypatch.setattr(kind, "Batch", lambda **given: made.append(given["start"]) or batch(**given))
    build_index(corpus, tmp_path / "once", chosen)
    assert made == [*range(120, PASSAGES, 40)]


def test_what_the_engine_lost_or_changed_is_found(
    engine: Engine, content: dict[str, Any], corpus: Corpus, vectors: Path, tmp_path: Path
) -> None:
    name = f"spoiled_{content['search']}"
    chosen = engine_settings(engine, name, batch=20, **content)
    filled(tmp_path / "index", corpus, chosen, vectors)
    verify_index(corpus, tmp_path / "index")
    engine.change(name, 30)
    load_index(corpus, tmp_path / "index", chosen)  # opening reads the first, the middle and the last batch
    with pytest.raises(RetrievalError, match=r"does not hold what was written: passages 20 to 39.*\n.*build the index"):
        verify_index(corpus, tmp_path / "index")
    engine.change(name, 5)
    with pytest.raises(RetrievalError, match="passages 0 to 19"):
        load_index(corpus, tmp_path / "index", chosen)
    engine.lose(name, 100)
    with pytest.raises(
        RetrievalError, match=f"holds {PASSAGES - 1} passages of this index, the corpus .* has {PASSAGES}"
    ):
        load_index(corpus, tmp_path / "index", chosen)
    engine.remove(name)
    filled(tmp_path / "index", corpus, chosen, vectors)
    verify_index(corpus, tmp_path / "index")


def test_a_copy_in_another_place_is_verified_with_its_settings(
    engine: Engine, corpus: Corpus, vectors: Path, tmp_path: Path
) -> None:
    chosen = {name: engine_settings(engine, name, batch=40) for name in ("here", "moved")}
    for name in chosen:
        filled(tmp_path / name, corpus, chosen[name], vectors)
    backend = tmp_path / "moved.yaml"
    backend.write_text(yaml.safe_dump(chosen["moved"].model_dump(mode="json")))

    def verified(*options: str) -> Any:
        command = ["verify", "--corpus", str(corpus.path), "--index", str(tmp_path / "here"), *options]
        return CliRunner().invoke(index_command, command)

    assert [verified(*options).exit_code for options in ((), ("--backend", str(backend)))] == [0, 0]
    engine.change("moved", 90)
    refused = verified("--backend", str(backend))
    assert (refused.exit_code, verified().exit_code) == (1, 0)
    assert "does not hold what was written: passages 80 to 119" in refused.output


def test_a_build_does_not_empty_the_index_that_another_folder_has_filled(
    engine: Engine, corpus: Corpus, tmp_path: Path
) -> None:
    chosen = engine_settings(engine, "shared")
    build_index(corpus, tmp_path / "first", chosen)
    for folder in ("second", "second", "first"):
        with pytest.raises(RetrievalError, match=rf"already \(shared_[0-9a-f]{{12}}, {PASSAGES} passages\)"):
            build_index(corpus, tmp_path / folder, chosen)
    verify_index(corpus, tmp_path / "first")
    build_index(corpus, tmp_path / "second", engine_settings(engine, "beside"))
    engine.remove("shared")
    build_index(corpus, tmp_path / "first", chosen)
    verify_index(corpus, tmp_path / "first")


def test_an_index_that_is_not_there_is_named(engine: Engine, corpus: Corpus, tmp_path: Path) -> None:
    build_index(corpus, tmp_path / "index", engine_settings(engine, "somewhere"))
    with pytest.raises(RetrievalError, match=r"has no .* elsewhere_[0-9a-f]{12}.*\n.*build the index"):
        load_index(corpus, tmp_path / "index", engine_settings(engine, "elsewhere"))


def test_the_manifest_says_where_it_is(engine: Engine, corpus: Corpus, tmp_path: Path) -> None:
    build_index(corpus, tmp_path / "index", engine_settings(engine, "placed"))
    manifest = json.loads((tmp_path / "index" / "manifest.json").read_text())
    assert manifest["place"] == {**engine.place(), "name": "placed"}
    assert "url" not in manifest["settings"] and "name" not in manifest["settings"]
    assert load_index(corpus, tmp_path / "index").search(["krone"], topk=1)[0]  # without settings


@pytest.fixture(scope="module")
def fuzzed(engine: Engine, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    corpus, place = Corpus(folder / "corpus.jsonl"), tmp_path_factory.mktemp("fuzzed")
    more: dict[str, Any] = {}
    if engine.lexical and engine.dense:
        more = {"search": "hybrid", "encoder": {"model": engine.encoder}, "fused": 10, **engine.exact}
    chosen = engine_settings(engine, "fuzzed", **more)
    build_index(corpus, place / "index", chosen)
    return load_index(corpus, place / "index", chosen)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=st.text(st.characters(codec="utf-8"), max_size=60))
@example(query="\0 ' \\ \" ; -- %s {} [1,2] krone:* & | !")
@example(query=" ".join(f"word{number}" for number in range(1500)))
def test_any_text_is_a_query(fuzzed: Any, query: str) -> None:
    try:
        [hits] = fuzzed.search([query], topk=5)
    except QueryError:
        assert len(query.split()) > 1024  # more words than an engine searches for
        return
    assert len(hits) <= 5 and [score for _, score in hits] == sorted((score for _, score in hits), reverse=True)


def test_while_it_is_away_a_search_fails_at_once_for_the_whole_batch(built: Any, engine: Engine) -> None:
    backend, _ = built("away")
    found = backend.search(["krone"], topk=3)
    engine.stop()
    try:
        with pytest.raises(Unavailable, match=AWAY):
            backend.search(["krone"] * 500, topk=3)
    finally:
        engine.start()
    assert backend.search(["krone"], topk=3) == found


def test_an_engine_that_is_away_ends_a_server_with_the_reason_and_a_build_too(
    engine: Engine, corpus: Corpus, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrieval_server.backends.engines.filling.PATIENCE_S", 0.0)
    chosen = engine_settings(engine, "missed")
    build_index(corpus, tmp_path / "index", chosen)
    engine.stop()
    try:
        with pytest.raises(Unavailable, match=f"({AWAY})" r"(.|\n)*correct `url`"):
            load_index(corpus, tmp_path / "index", chosen)
        with pytest.raises(Unavailable, match=AWAY):
            build_index(corpus, tmp_path / "other", engine_settings(engine, "other"))
    finally:
        engine.start()


@pytest.mark.usefixtures("lexical")  # without a model to load, and with a service that can be away
def test_the_server_answers_503_while_the_engine_is_away_and_goes_on_when_it_is_back(
    engine: Engine, corpus: Corpus, tmp_path: Path
) -> None:
    write_corpus(tmp_path, [json.loads(line) for line in corpus.path.read_text().splitlines()])
    chosen = engine_settings(engine, "served")
    (tmp_path / "engine.yaml").write_text(yaml.safe_dump(chosen.model_dump(mode="json")))
    built = subprocess.run(
        f"{sys.executable} -m retrieval_server index build --corpus corpus.jsonl --index index --backend engine.yaml",
        shell=True,
        cwd=tmp_path,
        timeout=90,
    )
    assert built.returncode == 0
    port = free_port()
    server = subprocess.Popen(command(tmp_path, port=port, options=("--backend", str(tmp_path / "engine.yaml"))))
    url = f"http://127.0.0.1:{port}"

    def ask(*queries: str) -> httpx.Response:
        return httpx.post(f"{url}/retrieve", json={"queries": list(queries), "topk": 2}, timeout=60)

    try:
        ready = await_status(f"{url}/readyz", 200, server).json()
        assert (ready["backend"], ready["passages"]) == (engine.kind, PASSAGES)
        first = ask("krone norway").json()["result"]
        assert len(first[0]) == 2
        engine.stop()
        try:
            refused = ask("river", "boat", "city")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "away")
            assert int(refused.headers["Retry-After"]) > 0 and re.search(AWAY, refused.json()["error"]["message"])
            assert ask("krone norway").json()["result"] == first  # from the cache
            assert httpx.get(f"{url}/healthz").status_code == 200
        finally:
            engine.start()
        assert [len(hits) for hits in ask("river", "boat", "city").json()["result"]] == [2, 2, 2]
    finally:
        server.terminate()
        assert server.wait(timeout=30) is not None


def test_what_the_url_and_the_encoder_may_be(engine: Engine) -> None:
    url = engine.place()["url"] if "://" in engine.place()["url"] else "s3://bucket"
    with pytest.raises(ValueError, match="password"):
        engine_settings(engine, "keyed", url=url.replace("://", "://me:secret@", 1))
    if engine.dense and engine.lexical:
        with pytest.raises(ValueError, match=r"compares vectors: give `encoder`"):
            engine_settings(engine, "blind", search="dense", encoder=None)
    if engine.lexical:
        with pytest.raises(ValueError, match=r"uses no `encoder`"):
            engine_settings(engine, "seeing", encoder={"model": "any"})


def test_qdrants_own_engine_ranks_our_weights_as_our_index_does(corpus: Corpus, tmp_path: Path) -> None:
    """Qdrant Edge is the engine without its server: the weights that our module sends give Lucene's scores there."""
    import qdrant_edge as edge

    analyzer = EnglishAnalyzer()
    texts = analyzer.batch([passage.contents for passage in corpus])
    vocabulary = Vocabulary.of(texts)
    weights = edge.EdgeSparseVectorParams()
    shard = edge.EdgeShard.create(str(tmp_path / "edge"), edge.EdgeConfig(sparse_vectors={"sparse": weights}))
    points = [
        edge.Point(row, {"sparse": edge.SparseVector(*vocabulary.passage(terms, k1=0.9, b=0.4))} if terms else {})
        for row, terms in enumerate(texts)
    ]
    shard.update(edge.UpdateOperation.upsert_points(points))
    shard.optimize()
    build_index(corpus, tmp_path / "ours", default_settings())
    ours = load_index(corpus, tmp_path / "ours")
    for query in QUERIES:
        asked = edge.SparseVector(*vocabulary.query(Counter(analyzer.terms(query))))
        nearest = edge.Query.Nearest(asked, using="sparse")
        found = shard.query(edge.QueryRequest(limit=PASSAGES, query=nearest)) if asked.indices else []
        hits = sorted(((point.id, point.score) for point in found), key=lambda hit: (-round(hit[1], 5), hit[0]))
        [wanted] = ours.search([query], topk=PASSAGES)
        assert [score for _, score in hits] == pytest.approx([score for _, score in wanted], rel=1e-5)
        assert {row for row, _ in hits} == {row for row, _ in wanted}
    shard.close()


@pytest.mark.parametrize("layout", ["exact", "ivf_rq"])
def test_lancedb_gathers_its_batches(
    folder: Path, corpus: Corpus, vectors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    """Each batch makes a fragment and a version, and each version's file lists all fragments."""
    import lancedb

    monkeypatch.setattr("retrieval_server.backends.lancedb.kind._GATHERED", 4)
    most: list[int] = []

    def table() -> Any:
        database = lancedb.connect(tmp_path / "lance")
        return database.open_table(database.list_tables().tables[0])

    def fragments() -> int:
        return table().stats()["fragment_stats"]["num_fragments"]

    def report(stage: str, done: int, total: int) -> None:
        if stage == "filling the engine":
            most.append(fragments())

    encoder = {"model": str(folder / "encoder")}
    values = {"kind": "lancedb", "url": str(tmp_path / "lance"), "encoder": encoder, "layout": layout, "batch": 20}
    convert_index(corpus, vectors, tmp_path / "index", index_settings.validate_python(values), report=report)
    verify_index(corpus, tmp_path / "index")
    assert len(most) == PASSAGES / 20 and max(most) == 4
    assert fragments() == 1
    assert len(table().list_versions()) <= 4, "versions of the last millisecond may stay, those of 15 batches do not"


@pytest.mark.parametrize("layout", ["exact", "hnsw"])
def test_qdrants_exact_search_reads_no_small_copies(tmp_path: Path, layout: str) -> None:
    """Therefore `quantization` is refused with `layout: exact`. In Qdrant Edge, with copies of one bit a number."""
    import qdrant_edge as edge

    numbers = np.random.default_rng(0).standard_normal((PASSAGES, 32), dtype=np.float32)
    form = edge.EdgeVectorParams(
        32, edge.Distance.Dot, quantization_config=edge.BinaryQuantizationConfig(always_ram=True)
    )
    shard = edge.EdgeShard.create(str(tmp_path / "edge"), edge.EdgeConfig(vectors={"dense": form}))
    points = [edge.Point(row, {"dense": vector}) for row, vector in enumerate(numbers.tolist())]
    shard.update(edge.UpdateOperation.upsert_points(points))
    shard.optimize()
    again = edge.QuantizationSearchParams(rescore=False, oversampling=1.0)
    nearest = edge.Query.Nearest(numbers[0].tolist(), using="dense")
    params = edge.SearchParams(exact=layout == "exact", quantization=again)
    [best] = shard.query(edge.QueryRequest(limit=1, query=nearest, params=params))
    shard.close()
    assert (abs(best.score - float(numbers[0] @ numbers[0])) < 1e-3) == (layout == "exact")


def test_nothing_that_openapi_allows_is_a_server_error(engine: Engine, fuzzed: Any, corpus: Corpus) -> None:
    def opens(report: Any) -> Opened:
        return Opened(corpus, fuzzed, {"backend": engine.kind, "passages": PASSAGES})

    app = create_app(ServerSettings(corpus=Path("none"), index=Path("none")), opens=opens)
    with serve(app) as url:
        while httpx.get(f"{url}/readyz").status_code != 200:
            pass
        seen = served_api.fuzzed(url, schemathesis.GenerationMode.POSITIVE, examples=40, only="/retrieve")
    assert seen["/retrieve", 200] > 10, seen
