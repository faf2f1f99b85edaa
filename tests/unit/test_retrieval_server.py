"""The retrieval server's parts: a corpus that names bad lines, an index that knows its corpus, BM25 by the formula."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from retrieval_server.backends.analysis import EnglishAnalyzer
from retrieval_server.backends.bm25 import Bm25
from retrieval_server.config import Bm25Settings, ServerSettings
from retrieval_server.corpus import Corpus
from retrieval_server.errors import RetrievalError
from retrieval_server.indexing import MANIFEST, build_index, load_index, open_backend
from retrieval_server.schemas import RetrieveRequest

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


@pytest.mark.parametrize("body", [{}, {"queries": []}, {"queries": "text"}, {"queries": ["a"], "topk": -1}])
def test_a_request_needs_queries(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RetrieveRequest.model_validate(body)


def test_a_request_defaults_to_bare_documents_and_the_servers_topk() -> None:
    request = RetrieveRequest.model_validate({"queries": ["a"], "unknown": 1})
    assert (request.topk, request.return_scores) == (None, False)


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
