"""The retrieval server's parts: a corpus that names bad lines, an index that knows its corpus, BM25 by the formula."""

import json
import math
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from retrieval_server.backends.bm25.analysis import EnglishAnalyzer
from retrieval_server.backends.bm25.index import Bm25
from retrieval_server.backends.bm25.settings import Bm25Settings
from retrieval_server.backends.lucene.index import Lucene
from retrieval_server.backends.lucene.settings import LuceneSettings
from retrieval_server.config import ServerSettings
from retrieval_server.corpus import Corpus
from retrieval_server.errors import QueryError, RetrievalError, Unavailable
from retrieval_server.index_kinds import kind_of
from retrieval_server.indexing import MANIFEST, build_index, load_index, open_backend
from retrieval_server.schemas import SearchRequest

BM25 = Bm25Settings()
# Analysed by hand, so that the formula is checked against terms that no tokenizer of ours has made:
# (contents, terms after lower case, English stop words, Porter).
ANALYSED = [
    ('"Norway"\nThe currency of Norway is the krone.', ["norwai", "currenc", "norwai", "krone"]),
    ('"Sweden"\nThe currency of Sweden is the krona.', ["sweden", "currenc", "sweden", "krona"]),
    ('"Oslo"\nOslo is a city in Norway.', ["oslo", "oslo", "citi", "norwai"]),
    (
        '"Rivers"\nRivers running and running to cities',
        ["river", "river", "run", "run", "citi"],
    ),
]


def write_corpus(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    rows = [{"id": f"d{row}", "contents": contents} for row, (contents, _) in enumerate(ANALYSED)]
    return Corpus(write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", rows))


@pytest.fixture(scope="module")
def backend(corpus: Corpus) -> Bm25:
    return Bm25.build(corpus, BM25)


def lucene_bm25(query: list[str]) -> dict[int, float]:
    """Lucene's BM25 by hand: sum of ln(1 + (N - df + 0.5) / (df + 0.5)) * tf / (tf + k1 * (1 - b + b * dl / avgdl))."""
    documents = [terms for _, terms in ANALYSED]
    average = sum(map(len, documents)) / len(documents)
    scores: dict[int, float] = {}
    for row, terms in enumerate(documents):
        length = BM25.k1 * (1 - BM25.b + BM25.b * len(terms) / average)
        for term, weight in Counter(query).items():
            frequency = terms.count(term)
            if frequency:
                holding = sum(term in other for other in documents)
                idf = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
                scores[row] = scores.get(row, 0.0) + weight * idf * frequency / (frequency + length)
    return scores


@pytest.mark.parametrize(
    ("query", "terms"),
    [
        ("currency of Norway", ["currenc", "norwai"]),
        ("NORWAY norway city", ["norwai", "norwai", "citi"]),
        ("runs by the river", ["run", "river"]),
        ("(krone AND currencies) OR NOT unknownword", ["krone", "currenc"]),
    ],
)
def test_scores_are_lucenes_formula(backend: Bm25, query: str, terms: list[str]) -> None:
    [hits] = backend.search([query], topk=len(ANALYSED))
    assert dict(hits) == pytest.approx(lucene_bm25(terms), rel=1e-5)
    assert [score for _, score in hits] == sorted((score for _, score in hits), reverse=True)


def test_nothing_known_finds_nothing_and_spares_its_neighbours(backend: Bm25) -> None:
    nothing, stop_words, unknown, found = backend.search(["", "to be or not to be", "zzyzx", "Oslo"], topk=2)
    assert (nothing, stop_words, unknown) == ([], [], [])
    assert [row for row, _ in found] == [2]


def test_ties_go_to_the_first_row(tmp_path: Path) -> None:
    same = Corpus(write_corpus(tmp_path / "c.jsonl", [{"title": "Twin", "text": "one word"}] * 5))
    [hits] = Bm25.build(same, BM25).search(["twin"], topk=3)
    assert [row for row, _ in hits] == [0, 1, 2]


def test_a_batch_answers_as_its_queries_do_alone(backend: Bm25) -> None:
    queries = ["currency", "", "Norway city", "running rivers"]
    assert backend.search(queries, topk=3) == [backend.search([query], topk=3)[0] for query in queries]


@given(query=st.text())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_a_query(backend: Bm25, query: str) -> None:
    [hits] = backend.search([query], topk=2)
    assert len(hits) <= 2 and all(0 <= row < len(ANALYSED) and score > 0 for row, score in hits)


@pytest.mark.parametrize(
    ("row", "title", "text", "contents"),
    [
        ({"id": 7, "contents": '"A b"\nc d'}, "A b", "c d", '"A b"\nc d'),
        ({"id": "7", "title": "A b", "text": "c d"}, "A b", "c d", '"A b"\nc d'),
        ({"id": "7", "title": "A b", "text": "c d", "contents": "A b\nc d"}, "A b", "c d", "A b\nc d"),
    ],
)
def test_either_form_of_a_row_gives_all_fields(tmp_path: Path, row: Any, title: str, text: str, contents: str) -> None:
    [document] = Corpus(write_corpus(tmp_path / "c.jsonl", [row]))
    assert document.model_dump() == {"id": "7", "title": title, "text": text, "contents": contents}


@pytest.mark.parametrize("bad", [b"{", b"[1]", b'{"id": 1}', b'{"id": 1, "title": "only"}', b'"\xff"'])
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'{"id": 0, "contents": "a\\nb"}\n\n' + bad + b"\n")
    corpus = Corpus(path)
    assert len(corpus) == 2 and corpus[0].text == "b"
    with pytest.raises(RetrievalError, match=r"c\.jsonl:3 is not a passage(.|\n)*What to do: one JSON object a line"):
        list(corpus)


@pytest.mark.parametrize("content", [None, b""])
def test_a_missing_or_empty_corpus_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "c.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RetrievalError, match="can not be read"):
        Corpus(path)


def test_the_last_line_needs_no_newline(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes('{"id": 0, "contents": "a\\nb"}\r\n{"id": 1, "contents": "Zürich\\n東京"}'.encode())
    assert [document.text for document in Corpus(path)] == ["b", "東京"]


def test_a_saved_index_answers_as_the_built_one(corpus: Corpus, tmp_path: Path) -> None:
    build_index(corpus, tmp_path / "index", BM25)
    queries = [contents for contents, _ in ANALYSED]
    built = Bm25.build(corpus, BM25).search(queries, topk=3)
    assert load_index(corpus, tmp_path / "index").search(queries, topk=3) == built


def test_an_index_is_loaded_for_its_own_corpus_and_settings_alone(corpus: Corpus, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    build_index(corpus, folder, BM25)
    other = Corpus(write_corpus(tmp_path / "other.jsonl", [{"title": "Other", "text": "passage"}]))
    with pytest.raises(RetrievalError, match=r"corpus is .*passages is 4, not 1(.|\n)*--build"):
        load_index(other, folder, BM25)
    with pytest.raises(RetrievalError, match="settings is"):
        load_index(corpus, folder, Bm25Settings(k1=1.2))
    assert open_backend(other, folder, BM25, build=True)[0].search(["passage"], topk=1)[0][0][0] == 0
    assert load_index(other, folder, BM25)


def test_a_half_built_index_is_not_opened(corpus: Corpus, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    build_index(corpus, folder, BM25)
    (folder / MANIFEST).unlink()
    with pytest.raises(RetrievalError, match=r"no finished index(.|\n)*--build"):
        open_backend(corpus, folder, BM25, build=False)
    assert open_backend(corpus, folder, BM25, build=True) and (folder / MANIFEST).exists()


@pytest.mark.parametrize("name", [MANIFEST, "data.csc.index.npy", "vocab.index.json"])
def test_a_damaged_index_is_refused_and_mended_by_a_build(corpus: Corpus, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "index"
    build_index(corpus, folder, BM25)
    (folder / name).write_text("[]", encoding="utf-8")
    with pytest.raises(RetrievalError, match="--build"):
        load_index(corpus, folder, BM25)
    assert open_backend(corpus, folder, BM25, build=True)[0].search(["Oslo"], topk=1)[0][0][0] == 2


def test_a_service_that_is_away_at_the_start_leads_to_no_build(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_index(corpus, tmp_path / "index", BM25)

    def away(*given: Any, **more: Any) -> Any:
        raise Unavailable("the engine does not answer")

    monkeypatch.setattr(type(kind_of(BM25)), "load", away)
    built: list[Any] = []
    monkeypatch.setattr("retrieval_server.indexing.opening.build_index", lambda *given, **more: built.append(given))
    with pytest.raises(Unavailable, match="does not answer"):
        open_backend(corpus, tmp_path / "index", BM25, build=True)
    assert not built


@pytest.mark.parametrize(
    "manifest", [{"backend": "dense", "settings": {"of": "another release"}}, {"backend": "dense"}, {}, []]
)
def test_no_default_index_replaces_one_whose_settings_can_not_be_read(
    corpus: Corpus, tmp_path: Path, manifest: Any
) -> None:
    folder = tmp_path / "index"
    folder.mkdir()
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    (folder / "vectors.npy").write_bytes(b"hours of work")
    with pytest.raises(RetrievalError, match=r"What to do: give the settings of this index with --backend"):
        open_backend(corpus, folder, build=True)
    assert (folder / "vectors.npy").exists()


@pytest.mark.parametrize("contents", ["", "the", "?!"])
def test_a_corpus_without_a_word_is_refused(tmp_path: Path, contents: str) -> None:
    wordless = Corpus(write_corpus(tmp_path / "c.jsonl", [{"id": 0, "contents": contents}]))
    with pytest.raises(RetrievalError, match="no word to search for"):
        build_index(wordless, tmp_path / "index", BM25)


def test_a_failed_build_leaves_the_old_index(corpus: Corpus, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    build_index(corpus, folder, BM25)
    bad = Corpus(write_corpus(tmp_path / "bad.jsonl", [{"id": 1}]))
    with pytest.raises(RetrievalError, match=r"bad\.jsonl:1"):
        open_backend(bad, folder, BM25, build=True)
    assert load_index(corpus, folder, BM25)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"queries": None},
        {"queries": "text"},
        {"queries": ["a"], "query": "a"},
        {"queries": ["a"], "topk": -1},
        {"query": "a", "topk": 1, "top_k": 2},
        {"query": 1},
    ],
)
def test_a_request_says_once_what_is_searched_for(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SearchRequest.model_validate(body)


@pytest.mark.parametrize(
    ("body", "texts", "wanted", "form"),
    [
        ({"queries": ["a"], "unknown": 1}, ["a"], None, "bare"),
        ({"queries": [], "topk": 0}, [], None, "bare"),
        ({"query": "a", "topk": 3, "return_scores": True}, ["a"], 3, "scored"),
        ({"query": ["a", "b"], "top_k": 2}, ["a", "b"], 2, "bare"),
        ({"query": "a", "top_k": 2, "topk": 2}, ["a"], 2, "bare"),
        ({"query": "a"}, ["a"], None, "flat"),
        ({"queries": ["a"], "topk_retrieval": 10, "topk_rerank": 3}, ["a"], 3, "bare"),
        ({"query": "a", "return_stages": True}, ["a"], None, "staged"),
        ({"query": "a", "topk": 5}, ["a"], 5, "flat"),
    ],
)
def test_every_clients_spelling_is_one_request(body: Any, texts: list[str], wanted: int | None, form: str) -> None:
    request = SearchRequest.model_validate(body)
    assert (request.texts, request.wanted, request.form) == (texts, wanted, form)
    assert not request.return_scores or body["return_scores"]


def test_settings_are_frozen_and_name_no_unknown_field() -> None:
    with pytest.raises(ValidationError):
        ServerSettings.model_validate({"corpus": "c", "index": "i", "portt": 1})
    with pytest.raises(ValidationError):
        ServerSettings(corpus=Path("c"), index=Path("i")).port = 1


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("The Dogs' dog's O'Neil's", ["dog", "dog", "o'neil"]),
        ("U.S.A. 3.14 1,000 a.b", ["u.s.a", "3.14", "1,000", "a.b"]),
        ("+376 x-ray foo_bar C++ e-mail@host.com", ["376", "x", "rai", "foo_bar", "c", "e", "mail", "host.com"]),
        ("東京 is Zürich", ["東", "京", "zürich"]),
        ("カタカナ ひら 한국어 foo:bar 1.5kg", ["カタカナ", "ひ", "ら", "한국어", "foo:bar", "1.5kg"]),
        ("to be or not to be", []),
    ],
)
def test_terms_are_those_of_lucenes_english_analyzer(text: str, terms: list[str]) -> None:
    """Expected terms: Lucene 9's EnglishAnalyzer, by `benchmarks/LuceneBm25.java`."""
    assert EnglishAnalyzer().terms(text) == terms


# Lucene 9.5's PorterStemFilter. Snowball's `porter` gives other terms for all of the first and none of the second.
LUCENES = """
psychology psycholog, analogy analog, apologies apolog, technologies technolog, topology topolog, etymology etymolog,
assembly assembl, possibly possibl, compatibly compat, incredibly incred, plausibly plausibl, horribly horribl,
reversibly revers, visibly visibl, forcibly forcibl, ostensibly ostens, trekking trek, trekked trek, revving rev,
byyed by, us us, as as, is is, ys ys, oy oy
"""
BOTH = """
psychological psycholog, ology ologi, bly bly, abli abli, probably probabl, blogs blog, blogging blog,
mythologiness mythologi, logistics logist, running run,
falling fall, hissing hiss, fizzed fizz, hopping hop, hoping hope, university univers,
organization organ, ed ed, ying ying, sky sky, enjoy enjoi, relational relat, adjustable adjust, formaliti formal,
\u00e9\u00e9s \u00e9\u00e9, 22ed 22ed, \U0001d4b3s \U0001d4b3
"""


@pytest.mark.parametrize("pair", [*LUCENES.split(","), *BOTH.split(",")])
def test_stems_are_lucenes(pair: str) -> None:
    word, term = pair.split()
    assert EnglishAnalyzer(stopwords="").terms(word) == [term]


@pytest.mark.parametrize("pair", LUCENES.split(","))
def test_and_not_snowballs(pair: str) -> None:
    import Stemmer

    word, term = pair.split()
    assert Stemmer.Stemmer("porter").stemWord(word) != term


def test_a_subject_is_found_by_its_adjective(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "c.jsonl", [{"title": "A", "text": "psychology"}, {"title": "B", "text": "law"}])
    [[(row, _)]] = Bm25.build(Corpus(path), BM25).search(["psychological"], topk=2)
    assert row == 0


def test_an_index_of_an_older_format_is_refused_and_built_again(corpus: Corpus, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    build_index(corpus, folder, BM25)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    assert manifest["stemmer"].startswith("PyStemmer ")
    (folder / MANIFEST).write_text(json.dumps(manifest | {"format": 2}), encoding="utf-8")
    with pytest.raises(RetrievalError, match=r"format 2 of another release; this one reads 3(.|\n)*--build"):
        load_index(corpus, folder)
    assert open_backend(corpus, folder, build=True)[1]["format"] == 3
    assert json.loads((folder / MANIFEST).read_text(encoding="utf-8")) == manifest


@pytest.mark.parametrize(("stemmer", "refused"), [("english", True), ("porter", False), ("", False)])
def test_a_stemmer_whose_terms_change_with_its_release_is_known_by_it(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stemmer: str, refused: bool
) -> None:
    settings = Bm25Settings(stemmer=stemmer)
    build_index(corpus, tmp_path / "index", settings)
    monkeypatch.setattr("retrieval_server.backends.bm25.analysis.version", lambda _: "2.2.0.3")
    if refused:
        with pytest.raises(RetrievalError, match=r"stemmer is 'PyStemmer .*, not 'PyStemmer 2\.2\.0\.3'"):
            load_index(corpus, tmp_path / "index")
        assert open_backend(corpus, tmp_path / "index", build=True)[1]["stemmer"] == "PyStemmer 2.2.0.3"
    else:
        assert load_index(corpus, tmp_path / "index")


@pytest.mark.parametrize("half", [rb"\ud800", rb"\uDFFF", b"\xed\xa0\x80"])
def test_half_a_surrogate_pair_in_a_passage_becomes_a_question_mark(tmp_path: Path, half: bytes) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'{"id": "x%b", "title": "A%b", "text": "b%b \\ud83d\\ude00"}\n' % (half, half, half))
    [document] = Corpus(path)
    for text in document.model_dump().values():
        assert text.encode() and "?" in text
    assert document.text.endswith("\U0001f600") or b"xed" in repr(half).encode()
    assert Bm25.build(Corpus(path), BM25).search(["a"], topk=1)


def builds_at_once(corpus: Corpus, folder: Path) -> list[BaseException | None]:
    """What two builds of one folder raised; the second begins while the first reads the corpus."""
    begun, waits = threading.Event(), threading.Event()

    def first(stage: str, done: int, total: int) -> None:
        if stage == "reading passages":
            begun.set()
            assert waits.wait(30)

    def second(stage: str, done: int, total: int) -> None:
        if stage.startswith("waiting"):
            waits.set()

    def run(report: Any) -> BaseException | None:
        try:
            build_index(corpus, folder, BM25, report=report)
        except BaseException as error:
            return error
        return None

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(run, first)
        assert begun.wait(30)
        two = pool.submit(run, second)
        return [one.result(), two.result()]


def test_a_second_build_of_an_index_waits_for_the_first(corpus: Corpus, tmp_path: Path) -> None:
    assert builds_at_once(corpus, tmp_path / "index") == [None, None]
    assert load_index(corpus, tmp_path / "index")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index"]


def test_a_query_nested_too_deeply_is_its_own_fault(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "c.jsonl", [{"title": "A", "text": "word"}])
    backend = Bm25.build(Corpus(path), Bm25Settings(boolean=True))
    for query in ("(" * 3000 + "word", "NOT " * 2000 + "word", "word (word " * 900):
        with pytest.raises(QueryError, match="nested deeper"):
            backend.search([query], topk=1)
    assert backend.search(["(" * 40 + "word" + ")" * 40], topk=1)[0]


class FakeLucene:
    """Stands for pyserini's LuceneSearcher over passages with these ids, all scored alike but the first."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.num_docs = len(ids)
        self._ids = ids

    def __call__(self, path: str) -> "FakeLucene":
        return self

    def set_bm25(self, k1: float, b: float) -> None:
        assert (k1, b) == (BM25.k1, BM25.b)

    def doc(self, number: int) -> Any:
        return SimpleNamespace(docid=lambda: self._ids[number])

    def search(self, query: str, k: int) -> list[Any]:
        found = [SimpleNamespace(docid=docid, score=1.0) for docid in reversed(self._ids)]
        found[-1].score = 2.0
        return sorted(found, key=lambda hit: -hit.score)[:k]


def lucene_over(monkeypatch: pytest.MonkeyPatch, corpus: Corpus, ids: Sequence[str]) -> Lucene:
    module = SimpleNamespace(LuceneSearcher=FakeLucene(ids))
    monkeypatch.setitem(sys.modules, "pyserini", SimpleNamespace(search=SimpleNamespace(lucene=module)))
    monkeypatch.setitem(sys.modules, "pyserini.search", SimpleNamespace(lucene=module))
    monkeypatch.setitem(sys.modules, "pyserini.search.lucene", module)
    return Lucene(LuceneSettings(path=Path("lucene")), corpus)


@pytest.mark.parametrize("name", ["{}", "doc{}", "{}000", "Zürich {}"])
def test_a_lucene_docid_is_the_id_of_a_passage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    ids = [name.format(number) for number in range(40)]
    path = write_corpus(tmp_path / "c.jsonl", [{"id": one, "title": "A", "text": one} for one in ids])
    lucene = lucene_over(monkeypatch, Corpus(path), ids)
    for topk in (1, 3, 40):
        [hits] = lucene.search(["q"], topk=topk)
        assert [row for row, _ in hits] == list(range(topk))
    for wrong in ([*ids[:-1], "unknown"], [one + "x" for one in ids], [str(number + 1) for number in range(40)]):
        with pytest.raises(RetrievalError, match=r"which no passage of (.|\n)*What to do"):
            lucene_over(monkeypatch, Corpus(path), wrong).search(["q"], topk=40)
