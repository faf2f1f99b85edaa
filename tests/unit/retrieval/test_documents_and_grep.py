"""Passages by their id, and by a regular expression: equal to reading the whole corpus."""

import json
import re
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_server.app.grep import search
from retrieval_server.app.refusals import Refused
from retrieval_server.backends.bm25.settings import Bm25Settings
from retrieval_server.corpus import IDS, Corpus
from retrieval_server.id_map import IdMap
from retrieval_server.indexing import build_index, open_corpus
from retrieval_server.passages import id_hash
from retrieval_server.schemas import GrepRequest

# Ids that look like rows, and are not: numbers out of order, leading zeros, other digits.
IDS_OF_ANY_KIND = st.one_of(
    st.integers(0, 12).map(str), st.sampled_from(["00", "٣", "-1", "1 ", "a/b", "é"]), st.text()
)


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@given(ids=st.lists(IDS_OF_ANY_KIND.filter(bool), min_size=1, max_size=12, unique=True), asked=IDS_OF_ANY_KIND)
@settings(max_examples=100, deadline=None)
def test_a_row_is_found_by_its_id_and_by_no_other(
    ids: list[str], asked: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("ids")
    path = written(folder / "corpus.jsonl", [{"id": name, "contents": "a word"} for name in ids])
    build_index(Corpus(path), folder / "index", Bm25Settings())
    read = [document.id for document in Corpus(path)]
    for corpus in (Corpus(path), open_corpus(path, folder / "index")):
        assert [corpus.row_of(name) for name in read] == list(range(len(read)))
        assert corpus.row_of(asked) == (read.index(asked) if asked in read else None)
    rows = read == [str(row) for row in range(len(read))]
    assert (folder / "index" / IDS).exists() is not rows


def test_ids_with_the_same_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "corpus.jsonl", [{"id": name, "contents": "a word"} for name in "abc"])
    monkeypatch.setattr("retrieval_server.corpus.id_hash", lambda name: 7)
    monkeypatch.setattr("retrieval_server.passages.id_hash", lambda name: 7)
    corpus = Corpus(path)
    assert [corpus.row_of(name) for name in "abcd"] == [0, 1, 2, None]


def test_a_saved_map_of_another_corpus_is_not_used(tmp_path: Path) -> None:
    from array import array

    IdMap.of(array("Q", map(id_hash, "ab"))).save(tmp_path / IDS)
    assert IdMap.open(tmp_path / IDS, passages=3) is None
    assert IdMap.open(tmp_path / "none", passages=2) is None
    known = IdMap.open(tmp_path / IDS, passages=2)
    assert known is not None and list(known.candidates(id_hash("b"))) == [1]


def test_an_index_folder_without_the_ids_reads_the_corpus_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "corpus.jsonl", [{"id": name, "contents": "a word"} for name in "abc"])
    build_index(Corpus(path), tmp_path / "index", Bm25Settings())
    (tmp_path / "index" / IDS).unlink()
    corpus = open_corpus(path, tmp_path / "index")
    assert [corpus.row_of(name) for name in "cabx"] == [2, 0, 1, None]
    monkeypatch.setattr(Corpus, "__iter__", lambda self: pytest.fail("the corpus was read again"))
    assert corpus.row_of("c") == 2


ROWS = [
    {"id": "0", "contents": '"Norway"\nThe currency of Norway is the krone.'},
    {"id": "1", "contents": '"Zürich"\nZürich lies at the Limmat.\n\nIt has a lake.'},
    {"id": "2", "contents": 'krone, KRONE and a "quoted" word \\ 1.5 %'},
    {"id": "3", "contents": "東京 is the capital of Japan"},
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(written(tmp_path_factory.mktemp("grep") / "corpus.jsonl", ROWS))


# Patterns in which RE2 and Python's `re` mean the same.
PATTERNS = st.sampled_from(
    [
        "krone",
        "KRONE",
        "[A-Z]{3,}",
        "ü",
        "^.Z",
        "lake\\.$",
        "\\d\\.\\d",
        "東.",
        "x*",
        "(a|b)c",
        "\\n\\n",
        'd"',
        "\\\\",
        "zzz",
    ]
)


@given(
    pattern=PATTERNS,
    ignore_case=st.booleans(),
    topk=st.integers(1, 5),
    start=st.integers(0, 5),
    exclude=st.lists(st.sampled_from("0123"), max_size=2),
)
@settings(max_examples=200, deadline=None)
def test_a_search_finds_what_reading_every_passage_finds(
    corpus: Corpus, pattern: str, ignore_case: bool, topk: int, start: int, exclude: list[str]
) -> None:
    plain = re.compile(pattern, re.IGNORECASE if ignore_case else 0)
    matching = [
        (row, match.span())
        for row, document in islice(enumerate(corpus), start, None)
        if (match := plain.search(document.contents)) and document.id not in exclude
    ]
    asked = GrepRequest(pattern=pattern, ignore_case=ignore_case, start=start, exclude=exclude)
    answer = search(corpus, asked, topk=topk, seconds=60)
    assert [(int(hit.document.id), (hit.start, hit.end)) for hit in answer.result] == matching[:topk]
    after = matching[topk - 1][0] + 1 if len(matching) >= topk else len(corpus)
    assert answer.next == (after if after < len(corpus) else None)
    assert answer.read == max(0, after - start)


def test_following_next_reads_every_passage_once_however_little_time_there_is(corpus: Corpus) -> None:
    found, start = [], 0
    while start is not None:
        answer = search(corpus, GrepRequest(pattern="[Kk]rone", start=start), topk=10, seconds=1e-9)
        assert answer.read == 1
        found += [hit.document.id for hit in answer.result]
        start = answer.next
    assert found == ["0", "2"]


def test_a_stopped_search_ends_at_the_next_passage(corpus: Corpus) -> None:
    assert search(corpus, GrepRequest(pattern="zzz"), topk=1, seconds=60, stopped=lambda: True).read == 1


@pytest.mark.parametrize("pattern", ["(", "(a)\\1", "a(?=b)", "a{5000}", "((a{100}){100}){100}", "[z-a]"])
def test_a_pattern_that_is_none_is_refused_with_the_reason(corpus: Corpus, pattern: str) -> None:
    with pytest.raises(Refused) as refused:
        search(corpus, GrepRequest(pattern=pattern), topk=1, seconds=60)
    assert (refused.value.status, refused.value.body["error"]["code"]) == (422, "bad_pattern")
    assert "RE2" in refused.value.body["error"]["remedy"]


def test_time_grows_with_the_text_only(tmp_path: Path) -> None:
    """A backtracking engine needs 2^n steps for this pattern: 28 letters already take it a minute."""
    long = Corpus(written(tmp_path / "corpus.jsonl", [{"id": "0", "contents": "a" * 100_000}]))
    answer = search(long, GrepRequest(pattern="^(a+)+$|^(a|aa)+b"), topk=1, seconds=60)
    assert [(hit.start, hit.end) for hit in answer.result] == [(0, 100_000)]
    assert search(long, GrepRequest(pattern="^(a+)+b"), topk=1, seconds=60).result == []


def test_half_a_surrogate_pair_in_a_passage_is_a_question_mark() -> None:
    class Halves(list[Any]):
        pass

    from retrieval_server.schemas import Document

    rows = Halves([Document(id="0", title="", text="x", contents="a\ud800b")])
    [hit] = search(rows, GrepRequest(pattern=r"a\?b"), topk=1, seconds=60).result
    assert (hit.start, hit.end) == (0, 3)
