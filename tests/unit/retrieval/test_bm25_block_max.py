"""BM25 with block-max pruning: the scores of the formula and of bm25s, and a build that a kill does not change."""

import json
import math
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from retrieval_server.backends.base import Hits
from retrieval_server.backends.bm25 import analysis, engines
from retrieval_server.backends.bm25.analysis import EnglishAnalyzer, spellings
from retrieval_server.backends.bm25.block_max import index, memory, workers
from retrieval_server.backends.bm25.block_max.building import build
from retrieval_server.backends.bm25.block_max.compiling import compiled
from retrieval_server.backends.bm25.block_max.index import BlockMax
from retrieval_server.backends.bm25.block_max.kernel import MOST_TERMS, search
from retrieval_server.backends.bm25.block_max.packing import BLOCK, frequency, pack, unpack_rows
from retrieval_server.backends.bm25.block_max.parts import term_hashes
from retrieval_server.backends.bm25.index import Bm25
from retrieval_server.backends.bm25.plan import expected, table
from retrieval_server.backends.bm25.settings import Bm25Settings
from retrieval_server.corpus import Corpus, silent
from retrieval_server.errors import QueryError, RetrievalError
from retrieval_server.indexing import MANIFEST, build_index, load_index, open_backend, verify_index
from retrieval_server.indexing.command import app

BLOCK_MAX = Bm25Settings(engine="block_max")
ROOT = Path(__file__).parents[3]


def corpus_of(folder: Path, texts: Sequence[str]) -> Corpus:
    folder.mkdir(parents=True, exist_ok=True)
    rows = "".join(json.dumps({"id": str(row), "contents": text}) + "\n" for row, text in enumerate(texts))
    (folder / "corpus.jsonl").write_text(rows, encoding="utf-8")
    return Corpus(folder / "corpus.jsonl")


def opened(corpus: Corpus, settings: Bm25Settings = BLOCK_MAX) -> BlockMax:
    folder = corpus.path.with_name("arrays")
    folder.mkdir()
    build(corpus, settings, folder, report=silent)
    return BlockMax.load(folder, settings)


def some_texts(count: int, *, words: int, seed: int = 0, longest: int = 12) -> list[str]:
    """Texts of words whose frequency falls with their number, as in a language."""
    chance = random.Random(seed)
    weights = [1 / (number + 1) for number in range(words)]
    names = [f"w{number}" for number in range(words)]
    return [" ".join(chance.choices(names, weights, k=chance.randint(1, longest))) for _ in range(count)]


def formula(texts: Sequence[Sequence[str]], query: Sequence[str], *, k1: float, b: float) -> dict[int, float]:
    """Lucene's BM25: sum of ln(1 + (N - df + 0.5) / (df + 0.5)) * tf / (tf + k1 * (1 - b + b * dl / avgdl))."""
    average = sum(map(len, texts)) / len(texts)
    holding = Counter(term for terms in texts for term in set(terms))
    scores: dict[int, float] = {}
    for row, terms in enumerate(texts):
        norm = k1 * (1 - b + b * len(terms) / average)
        for term in query:
            if tf := terms.count(term):
                idf = math.log(1 + (len(texts) - holding[term] + 0.5) / (holding[term] + 0.5))
                scores[row] = scores.get(row, 0.0) + idf * tf / (tf + norm)
    return scores


def ranks_as(hits: Hits, scores: dict[int, float], topk: int) -> None:
    """The hits are the best of `scores`, in order, where scores that are equal in single precision may swap."""
    assert len(hits) == min(topk, len(scores)) and len({row for row, _ in hits}) == len(hits)
    for (row, score), best in zip(hits, sorted(scores.values(), reverse=True), strict=False):
        assert score == pytest.approx(scores[row], rel=1e-5) == pytest.approx(best, rel=1e-5)
    assert hits == sorted(hits, key=lambda hit: (-hit[1], hit[0]))


# With numpy 1, bm25s computes a part of its weights in single precision.
bit_for_bit = pytest.mark.skipif(np.__version__.startswith("1."), reason="bm25s rounds differently with numpy 1")


@bit_for_bit
@given(
    texts=st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=12), min_size=1, max_size=40),
    queries=st.lists(st.lists(st.sampled_from("abcdefghz"), max_size=6), min_size=1, max_size=5),
    topk=st.integers(1, 50),
    k1=st.sampled_from([0.0, 0.9, 2.5]),
    b=st.sampled_from([0.0, 0.4, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_rankings_are_those_of_lucenes_formula(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[list[str]],
    queries: list[list[str]],
    topk: int,
    k1: float,
    b: float,
) -> None:
    texts = [*texts, ["a"]]  # at least one word
    corpus = corpus_of(tmp_path_factory.mktemp("c"), [" ".join(terms) for terms in texts])
    chosen = Bm25Settings(k1=k1, b=b, engine="block_max", stemmer="", stopwords="")
    ours, theirs = opened(corpus, chosen), Bm25.build(corpus, chosen)
    asked = [" ".join(query) for query in queries]
    found = ours.search(asked, topk=topk)
    assert found == theirs.search(asked, topk=topk)
    for query, hits in zip(queries, found, strict=True):
        ranks_as(hits, formula(texts, query, k1=k1, b=b), topk)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[BlockMax, Bm25]:
    """Over several windows of rows, with terms of many blocks, of one, and of a single posting; each text twice."""
    texts = some_texts(9_000, words=400)
    corpus = corpus_of(tmp_path_factory.mktemp("many"), texts + texts)
    ours = opened(corpus)
    ours._cores = 1  # a piece has several queries, also on a machine with many cores
    return ours, Bm25.build(corpus, Bm25Settings())


@bit_for_bit
@pytest.mark.parametrize("topk", [1, 3, 10, 200, 20_000])
def test_every_hit_of_a_pruned_search_is_that_of_bm25s(both: tuple[BlockMax, Bm25], topk: int) -> None:
    ours, theirs = both
    queries = [*some_texts(150, words=400, seed=1), *some_texts(20, words=5, seed=2), "", "unknown", "w0", "w399 w0"]
    assert ours.search(queries, topk=topk) == theirs.search(queries, topk=topk)


def test_a_shorter_list_begins_a_longer_one_alone_and_in_a_batch(both: tuple[BlockMax, Bm25]) -> None:
    ours, _ = both
    queries = some_texts(60, words=400, seed=3)
    longer = ours.search(queries, topk=20)
    assert [ours.search([query], topk=7)[0] for query in queries] == [hits[:7] for hits in longer]


@bit_for_bit
def test_windows_beyond_the_most_promising_ones_are_searched_too(tmp_path: Path) -> None:
    passages = 20 * 4096
    texts = some_texts(passages, words=3000, longest=2)
    for word, holding in (("thousand", 1024), ("more", 1025), ("last", 1)):  # the first is read whole, the second not
        for number in range(holding):
            texts[passages - 1 - number * (passages // holding)] += f" {word}"
    corpus = corpus_of(tmp_path, texts)
    ours, theirs = opened(corpus), Bm25.build(corpus, Bm25Settings())
    queries = ["thousand", "more", "last", "thousand more", "w0 more", "w1 w5 last", "w0 w1 w2 thousand", "w9 w40 w300"]
    for topk in (1, 8, 2_000, 20_000):
        assert ours.search(queries, topk=topk) == theirs.search(queries, topk=topk)


@bit_for_bit
@pytest.mark.parametrize("query", [" ".join(f"w{number}" for number in range(2 * MOST_TERMS)), "w3 " * 2000])
def test_a_query_of_many_words_is_searched_without_pruning(both: tuple[BlockMax, Bm25], query: str) -> None:
    ours, theirs = both
    assert ours.search([query], topk=10) == theirs.search([query], topk=10)


def test_topk_0_no_queries_and_unknown_words_find_nothing(both: tuple[BlockMax, Bm25]) -> None:
    ours, _ = both
    assert ours.search(["w1 w2", "w3"], topk=0) == [[], []]
    assert ours.search([], topk=3) == []
    assert ours.search(["unknown", ""], topk=10**9) == [[], []]


@bit_for_bit
def test_boolean_queries_find_what_bm25s_finds(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, some_texts(500, words=30))
    chosen = Bm25Settings(boolean=True)
    queries = ["w1 AND w2", "w1 AND NOT w2", "(w3 OR w4) AND w0", '"w5 w1"', "NOT w0", "w1 w2 w1", "unknown AND w1"]
    backend = opened(corpus, chosen)
    found = backend.search(queries, topk=20)
    assert found == Bm25.build(corpus, chosen).search(queries, topk=20)
    assert found[0] and found[1] and not found[6]
    with pytest.raises(QueryError, match="nested deeper"):
        backend.search(["w1", "(" * 99], topk=1)


def test_the_pieces_of_a_batch_are_searched_by_two_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = opened(corpus_of(tmp_path, some_texts(50, words=30)))
    monkeypatch.setattr(backend, "_cores", 2)
    queries = [f"w{number} w{number + 1}" for number in range(16)]
    wanted = [backend.search([query], topk=5)[0] for query in queries]
    both, threads = threading.Barrier(2, timeout=60), set[str]()

    def watched(index: Any, asked: Any, begin: int, *more: Any) -> None:
        threads.add(threading.current_thread().name)
        both.wait()
        search(index, asked, begin, *more)

    monkeypatch.setattr(index, "search", watched)
    assert backend.search(queries, topk=5) == wanted
    assert len(threads) == 2


@pytest.mark.parametrize("boolean", [False, True])
def test_queries_without_pruning_are_searched_on_the_threads(tmp_path: Path, boolean: bool) -> None:
    backend = opened(corpus_of(tmp_path, some_texts(50, words=30)), Bm25Settings(boolean=boolean))
    names: list[str] = []

    def watched(query: str, topk: int) -> Hits:
        names.append(threading.current_thread().name)
        return [(0, float(len(query)))]

    backend._add_up = watched
    long = " ".join(f"w{number}" for number in range(2 * MOST_TERMS))
    found = backend.search(["w1 w2", long], topk=1)
    assert found[1] == [(0, float(len(long)))]
    assert (found[0] == [(0, 5.0)]) == boolean
    assert len(names) == 1 + boolean and all(name.startswith("bm25") for name in names)


@given(
    postings=st.lists(st.tuples(st.integers(1, 2**26), st.integers(1, 2**20)), min_size=1, max_size=BLOCK),
    previous=st.integers(-1, 2**20),
)
@settings(max_examples=200, deadline=None)
def test_what_is_packed_is_unpacked(postings: list[tuple[int, int]], previous: int) -> None:
    rows = (previous + np.cumsum([gap for gap, _ in postings])).astype(np.uint32)
    frequencies = np.array([tf for _, tf in postings], np.uint32)
    words, read = np.zeros(2 * len(rows) + 5, np.uint32), np.empty(BLOCK, np.int64)
    end = pack(words, 1, rows, frequencies, 0, len(rows), previous)
    assert end <= len(words) - 1 and words[0] == 0 and not words[end:].any()
    unpack_rows(words, 1, len(rows), previous, int(rows[-1]), read)
    assert read[: len(rows)].tolist() == rows.tolist()
    assert [frequency(words, 1, len(rows), at) for at in range(len(rows))] == frequencies.tolist()


@given(st.text(alphabet=st.characters(max_codepoint=127)))
@settings(max_examples=300, deadline=None)
def test_a_text_of_ascii_has_the_same_words_by_the_shorter_pattern(text: str) -> None:
    assert spellings(text) == analysis._WORD.findall(text)


@given(st.lists(st.text(max_size=30), max_size=8))
@settings(max_examples=200, deadline=None)
def test_spellings_have_the_terms_of_their_text(texts: list[str]) -> None:
    text, analyzer = " ".join([*texts, "It's trekking 3,5 U.S. the"]), EnglishAnalyzer()
    terms, counts = analyzer.terms_of_each(spellings(text))
    assert terms == analyzer.terms(text)
    each = [analyzer.terms_of_each([spelling])[0] for spelling in spellings(text)]
    assert counts == [len(own) for own in each] and terms == [term for own in each for term in own]


def described(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))


@pytest.mark.parametrize(("many", "engine"), [(4, "block_max"), (5, "bm25s")])
def test_the_number_of_passages_chooses_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many: int, engine: str
) -> None:
    monkeypatch.setattr(engines, "MANY", many)
    corpus, folder = corpus_of(tmp_path, ["one two", "two", "three", "four"]), tmp_path / "index"
    build_index(corpus, folder, Bm25Settings())
    assert described(folder)["engine"] == engine and "engine" not in described(folder)["settings"]
    monkeypatch.undo()  # an index is opened as it is, whatever a new one would be
    assert [row for row, _ in load_index(corpus, folder).search(["two"], topk=5)[0]] == [1, 0]
    assert verify_index(corpus, folder)["engine"] == engine


def test_a_named_engine_is_part_of_the_index_and_not_of_its_answers(tmp_path: Path) -> None:
    corpus, folder = corpus_of(tmp_path, ["one two", "two", "three"]), tmp_path / "index"
    build_index(corpus, folder, Bm25Settings(engine="bm25s"))
    with pytest.raises(RetrievalError, match=r"block_max(.|\n)*--build"):
        load_index(corpus, folder, BLOCK_MAX)
    backend, manifest = open_backend(corpus, folder, BLOCK_MAX, build=True)
    assert isinstance(backend, BlockMax) and described(folder)["engine"] == "block_max"
    assert manifest["settings"] == Bm25Settings().answers() == BLOCK_MAX.answers()
    assert not [path.name for path in folder.iterdir() if path.name.startswith(("parts", "block_max.merged"))]


@pytest.mark.parametrize("damage", [b"", b"x" * 64])
@pytest.mark.parametrize("name", ["block_max.json", "block_max.postings", "block_max.terms"])
def test_a_damaged_index_is_refused_and_built_again(tmp_path: Path, name: str, damage: bytes) -> None:
    corpus, folder = corpus_of(tmp_path, ["one two", "two", "three"]), tmp_path / "index"
    build_index(corpus, folder, BLOCK_MAX)
    (folder / name).write_bytes(damage)
    with pytest.raises(RetrievalError, match="--build"):
        load_index(corpus, folder, BLOCK_MAX)
    assert open_backend(corpus, folder, BLOCK_MAX, build=True)[0].search(["three"], topk=1)[0][0][0] == 2


@pytest.mark.parametrize("contents", ["", "the", "?!"])
def test_a_corpus_without_a_word_is_refused(tmp_path: Path, contents: str) -> None:
    with pytest.raises(RetrievalError, match="no word to search for"):
        build_index(corpus_of(tmp_path, [contents, contents]), tmp_path / "index", BLOCK_MAX)


def test_numba_is_named_if_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(RetrievalError, match=r"needs numba(.|\n)*retriever(.|\n)*bm25s"):
        compiled(term_hashes)


def test_a_folder_that_can_not_be_written_to_only_costs_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import numba

    def fake_njit(**options: Any) -> Callable[[Any], Any]:
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(numba, "njit", fake_njit)
    assert compiled(term_hashes) is term_hashes


# Builds, and ends itself as `kill -9` does at a stage; parts are small, so that there are many.
KILLED = """
import os, signal, sys
from pathlib import Path
from retrieval_server.backends.bm25.block_max import merging, workers
from retrieval_server.backends.bm25.settings import Bm25Settings
from retrieval_server.corpus import Corpus
from retrieval_server.indexing import build_index

corpus, folder, stage, least = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
workers.PART_BYTES, merging._SLICE = 4000, 500

def report(at, done, total):
    if at == stage and done >= least:
        os.kill(os.getpid(), signal.SIGKILL)

build_index(Corpus(corpus), folder, Bm25Settings(engine="block_max"), report=report)
"""


@bit_for_bit
def test_a_killed_build_continues_to_the_same_bytes(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, some_texts(1000, words=200))

    def run(name: str, stage: str, least: int = 0) -> int:
        command = [sys.executable, "-c", KILLED, str(corpus.path), str(tmp_path / name), stage, str(least)]
        return subprocess.run(command, cwd=ROOT).returncode

    assert run("whole", "never") == 0
    parts = tmp_path / "killed.partial" / "parts"
    assert run("killed", "analysing passages", 300) == -signal.SIGKILL
    finished = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.json") if path.name.startswith("part")}
    assert len(finished) > 1
    assert run("killed", "merging terms", 1) == -signal.SIGKILL
    assert all((parts / name).stat().st_mtime_ns == changed for name, changed in finished.items())
    assert run("killed", "reading block_max.postings") == -signal.SIGKILL
    assert not parts.exists() and not (tmp_path / "killed").exists()
    assert run("killed", "never") == 0
    assert described(tmp_path / "killed") == described(tmp_path / "whole")
    ours = load_index(corpus, tmp_path / "killed").search(["w1 w7", "w150"], topk=10)
    assert ours == Bm25.build(corpus, Bm25Settings()).search(["w1 w7", "w150"], topk=10)


def test_the_number_of_processes_and_parts_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = corpus_of(tmp_path, some_texts(600, words=200))
    build_index(corpus, tmp_path / "one", BLOCK_MAX)
    monkeypatch.setattr(workers, "PART_BYTES", 5000)
    monkeypatch.setattr(workers, "processes", lambda passages: 3)
    build_index(corpus, tmp_path / "many", BLOCK_MAX)
    assert described(tmp_path / "one") == described(tmp_path / "many")


def test_a_lost_process_ends_the_build_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = corpus_of(tmp_path, some_texts(600, words=200))
    monkeypatch.setattr(workers, "PART_BYTES", 5000)

    started = workers._started

    def lost(task: dict[str, Any]) -> Any:
        process = started(task)
        process.kill()
        return process

    with monkeypatch.context() as patched:
        patched.setattr(workers, "_started", lost)
        with pytest.raises(RetrievalError, match=r"ended with status -9(.|\n)*continues"):
            build_index(corpus, tmp_path / "index", BLOCK_MAX)
    build_index(corpus, tmp_path / "index", BLOCK_MAX)
    assert load_index(corpus, tmp_path / "index").search(["w3"], topk=1)[0]


def test_a_bad_row_is_named_by_its_line_whatever_process_reads_it(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, some_texts(200, words=50))
    with corpus.path.open("a") as file:
        file.write('{"id": "x"}\n')
    (tmp_path / "parts").mkdir()
    before = set(psutil.Process().children())
    with pytest.raises(RetrievalError, match=r"corpus\.jsonl:201"):
        workers.analyse(Corpus(corpus.path), BLOCK_MAX, tmp_path / "parts", report=silent, part_bytes=2000)
    left = set(psutil.Process().children()) - before
    assert not [child for child in left if child.status() != psutil.STATUS_ZOMBIE]


@given(passages=st.integers(1, 200_000_000), cores=st.integers(1, 256))
def test_a_build_runs_as_many_processes_as_the_memory_of_its_limit_holds(passages: int, cores: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory.os, "sched_getaffinity", lambda process: set(range(cores)))
        running = memory.processes(passages)
    most = min(cores, memory.MOST_PROCESSES)
    assert 1 <= running <= most
    with_them = memory.build_bytes(passages, running)
    assert with_them >= 180_000_000 * running + 20 * passages
    assert with_them <= 2_000_000_000 or running == 1 or passages > 43_000_000, "the check of the ids takes more"
    if running < most:
        assert 180_000_000 * (running + 1) + 20 * passages > 1_900_000_000, "one more would not fit"


def test_a_build_of_43_million_passages_stays_below_2_gb() -> None:
    """docs/retrieval.md states this, and `index plan` the number for each size."""
    for passages in (1, 1_000_000, 21_015_324, 30_000_000, 43_000_000):
        assert memory.build_bytes(passages, memory.processes(passages)) <= 2_000_000_000
    assert memory.build_bytes(50_000_000, 1) == 100_000_000 + 44 * 50_000_000
    assert "2.3 GB" in table(passages=50_000_000).note


def test_a_plan_is_the_measurement_at_a_measured_size_and_names_the_default() -> None:
    for name, sizes in engines.read_costs()["engines"].items():
        for size in sizes:
            for cost in size.keys() - {"passages"}:
                assert expected(name, cost, passages=size["passages"]) == pytest.approx(size[cost])
    for passages, name in ((engines.MANY, "block_max"), (engines.MANY - 1, "bm25s")):
        assert [row[0] for row in table(passages=passages).rows if row[-1] == "yes"] == [name]
    sizes = [size["passages"] for size in engines.read_costs()["engines"]["block_max"]]
    for passages in (*sizes, sizes[0] + 1, 21_015_324):
        note = table(passages=passages).note
        assert note.startswith(
            "Measured" if passages in sizes else "Computed from measurements of 100,000, 1,000,000, 5,000,000"
        )
    planned = CliRunner().invoke(app, ["plan", "--passages", "21015324"])
    assert planned.exit_code == 0 and all(name in planned.output for name in ("bm25s", "block_max", "ivf_rabitq"))
