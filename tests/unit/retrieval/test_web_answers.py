"""Web search without HTTP: what the providers' answers become, the pace, the key, and the kept answers."""

import json
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from retrieval_server.backends.web.asking import Key, Pace, Paused
from retrieval_server.backends.web.latest import Latest
from retrieval_server.backends.web.providers import PROVIDERS
from retrieval_server.backends.web.providers.base import Found, documents, plain
from retrieval_server.backends.web.settings import WebSettings
from retrieval_server.backends.web.store import STORE, Store, key_of, recorded_digest, request_of
from retrieval_server.errors import QueryError, RetrievalError
from retrieval_server.index_kinds import kind_of
from retrieval_server.indexing import open_without_corpus
from retrieval_server.passages import read_passage
from retrieval_server.schemas import Document
from retrieval_server.services import HIDDEN

PAGE = Document(id="https://a.org/", title="A", text="about a", contents='"A"\nabout a')


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<strong>Tom</strong> &amp; Jerry", "Tom & Jerry"),
        ("a &lt;b&gt; c", "a <b> c"),
        ("1 < 2 and 3 > 2", "1 < 2 and 3 > 2"),
        ("it&#x27;s<br/> here&nbsp;now ", "it's here now"),
        ("a<!-- <b> hidden -->b", "ab"),
        (None, ""),
        (7, ""),
        ("half \ud83d", "half ?"),
    ],
)
def test_tags_are_stripped_and_entities_unescaped_once(html: Any, text: str) -> None:
    assert plain(html) == text


def test_results_without_text_are_dropped_and_each_address_comes_once() -> None:
    rows = [
        Found("https://a.org/", "A\n<b>title</b>", "first"),
        Found("https://b.org/", "B", " <br> "),
        Found("https://a.org/", "A", "again"),
        Found(None, "", "an answer\nof two lines"),
        Found("https://c.org/", None, "no title"),
    ]
    pages = documents(rows)
    assert [(page.title, page.text) for page in pages] == [
        ("A title", "first"),
        ("", "an answer\nof two lines"),
        ("", "no title"),
    ]
    assert pages[0].contents == '"A title"\nfirst' and pages[0].id == "https://a.org/"
    assert pages[1].id.startswith("answer:") and pages[1].contents == '""\nan answer\nof two lines'


TEXTS = st.one_of(st.none(), st.integers(), st.text(), st.lists(st.text(), max_size=2))


@given(st.lists(st.builds(Found, TEXTS, TEXTS, TEXTS), max_size=6))
def test_every_page_can_be_read_back_from_its_contents(found: list[Found]) -> None:
    pages = documents(found)
    assert len({page.id for page in pages}) == len(pages)
    for page in pages:
        assert page.text and page.id
        read = read_passage({"contents": page.contents})
        assert (read.title, read.text) == (page.title, page.text)


@given(st.recursive(TEXTS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8))
@pytest.mark.parametrize("name", list(PROVIDERS.own))
def test_no_answer_of_a_provider_can_break_the_reading(name: str, value: Any) -> None:
    lists = ("organic", "organic_results", "results", "items", "web", "answerBox", "answer_box", "peopleAlsoAsk")
    for field in lists:
        for answer in ({field: value}, {field: [value]}, {field: {"results": value}}):
            assert all(page.text for page in documents(PROVIDERS[name].found(answer)))


@pytest.mark.parametrize(
    ("given_settings", "problem"),
    [
        ({"provider": "serpr"}, "do you mean serper"),
        ({"provider": "serper", "results": 101}, "at most 100"),
        ({"provider": "serper", "options": {"country": "no"}}, "gl, hl, location, tbs"),
        ({"provider": "google_cse"}, "needs cx"),
        ({"provider": "google_cse", "options": {"key": "x", "cx": "y"}}, "has no key"),
        ({"provider": "serper", "address": "ftp://x"}, "address"),
    ],
)
def test_settings_that_a_provider_does_not_have_are_refused(given_settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        WebSettings.model_validate(given_settings)


def test_more_passages_than_a_request_gives_are_refused() -> None:
    web = WebSettings(provider="serper", results=10)
    web.check_topk(10)
    with pytest.raises(ValueError, match="11 passages"):
        web.check_topk(11)


def test_a_query_is_cut_to_what_its_provider_accepts() -> None:
    assert PROVIDERS["brave"].fitting(" a \n b " + "c " * 100) == " ".join(["a", "b"] + ["c"] * 48)
    assert len(PROVIDERS["tavily"].fitting("x" * 500)) == 400
    assert PROVIDERS["serper"].fitting(" \n ") == ""


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 100.0

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


async def test_the_pace_keeps_the_rate_and_waits_as_long_as_the_provider_asks() -> None:
    clock = Clock()
    pace = Pace(4.0, clock=lambda: clock.now, sleep=clock.sleep)
    begun = []
    for number in range(5):
        await pace.turn(ends=103.6)
        begun.append(clock.now)
        if number == 2:
            pace.pause(3.0)
    assert begun == [100.0, 100.25, 100.5, 103.5, 103.75], "our own rate is waited for, however long"


async def test_a_pause_that_is_longer_than_the_patience_is_not_waited_for() -> None:
    clock = Clock()
    pace = Pace(None, clock=lambda: clock.now, sleep=clock.sleep)
    pace.pause(3600.0)
    pace.pause(5.0)
    for waited in (0.0, 600.0):
        clock.now = 100.0 + waited
        with pytest.raises(Paused) as caught:
            await pace.turn(ends=clock.now + 60.0)
        assert caught.value.seconds == 3600.0 - waited and clock.now == 100.0 + waited
    await pace.turn(ends=3700.0)
    assert clock.now == 3700.0


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=6))
def test_a_key_is_hidden_in_every_spelling(value: str) -> None:
    key = Key("K", {"K": value})
    for spelling in (value, quote(value), quote(value, safe=""), quote_plus(value), json.dumps(value)[1:-1]):
        assert key.hide(f"<{spelling}>") == f"<{HIDDEN}>"
    assert value not in repr(key) and value not in str(key)


def test_a_missing_key_names_its_variable() -> None:
    with pytest.raises(RetrievalError, match="SERPER_API_KEY is not set"):
        Key("SERPER_API_KEY", {"SERPER_API_KEY": " "})


@pytest.mark.parametrize("value", ["two words", "line\nline", "schlüssel", "nul\0"])
def test_a_key_that_no_header_can_hold_is_refused_without_showing_it(value: str) -> None:
    with pytest.raises(RetrievalError, match="SERPER_API_KEY holds no key") as caught:
        Key("SERPER_API_KEY", {"SERPER_API_KEY": value})
    assert value not in str(caught.value)


def request(query: str) -> str:
    return request_of("serper", 1, query, 10, {"gl": "no", "hl": "en"})


def test_equal_requests_have_one_key_and_different_ones_different_keys() -> None:
    assert request("a") == request_of("serper", 1, "a", 10, {"hl": "en", "gl": "no"})
    others = [request("b"), request_of("serper", 2, "a", 10, {}), request_of("brave", 1, "a", 10, {})]
    assert len({key_of(one) for one in [request("a"), *others]}) == 4


def kept(folder: Path, queries: list[str]) -> str:
    store = Store(folder)
    for query in queries:
        store.keep(key_of(request(query)), request(query), f'{{"about": "{query}"}}', [PAGE, PAGE])
    store.close()
    return recorded_digest(folder)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.text("abc", min_size=1, max_size=3), max_size=6), st.randoms())
def test_the_digest_depends_on_the_answers_and_not_on_their_order(queries: list[str], chance: Any) -> None:
    import tempfile

    shuffled = [*queries, *queries]
    chance.shuffle(shuffled)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        first, second = kept(Path(one), queries), kept(Path(two), shuffled)
        assert first == second
        assert kept(Path(two), ["another"]) != first


def test_the_first_answer_to_a_request_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    key = key_of(request("a"))
    first = store.keep(key, request("a"), "{}", [PAGE])
    other = PAGE.model_copy(update={"text": "changed"})
    assert store.keep(key, request("a"), '{"later": 1}', [other, other]) == first == store.rows(key)
    assert store[first[0]] == PAGE and store.answers == 1 and len(store) == 1
    assert store.row_of(PAGE.id) == 0 and store.row_of("https://unknown/") is None
    with pytest.raises(IndexError):
        store[5]


def test_an_empty_answer_is_kept_and_is_no_miss(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.rows(key_of(request("a"))) is None
    store.keep(key_of(request("a")), request("a"), "{}", [])
    assert store.rows(key_of(request("a"))) == []


def test_the_budget_counts_across_stores_and_restarts(tmp_path: Path) -> None:
    one, two = Store(tmp_path), Store(tmp_path)
    assert [store.pay(3) for store in (one, two, one, two)] == [True, True, True, False]
    one.close()
    two.close()
    assert Store(tmp_path).calls == 3 and not Store(tmp_path).pay(3) and Store(tmp_path).pay(4)


def test_threads_that_record_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    stores = [Store(tmp_path), Store(tmp_path)]

    def record(number: int) -> None:
        for query in range(20):
            one = request(f"{query}")
            stores[number % 2].keep(key_of(one), one, "{}", [PAGE])

    threads = [threading.Thread(target=record, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stores[0].answers == 20 == len(stores[1])
    stores[0].verify()


def test_a_replay_does_not_see_what_is_recorded_beside_it(tmp_path: Path) -> None:
    before = kept(tmp_path, ["a"])
    replay = Store(tmp_path, writes=False)
    after = kept(tmp_path, ["b"])
    assert replay.digest == before != after == recorded_digest(tmp_path)
    assert replay.rows(key_of(request("b"))) is None
    replay.verify()


def test_other_pages_of_the_same_answer_are_another_recording(tmp_path: Path) -> None:
    one = request("a")
    digests: set[str] = set()
    for number, pages in enumerate(([PAGE], [PAGE, PAGE], [], [PAGE.model_copy(update={"text": "more"})], None)):
        store = Store(tmp_path / f"{number}")
        try:
            store.keep(key_of(one), one, "{}", pages or [], None if pages is not None else "it is malformed")
        except QueryError:
            assert pages is None
        store.verify()
        digests.add(store.digest)
    assert len(digests) == 5


def test_a_refused_query_is_refused_again_for_the_same_reason(tmp_path: Path) -> None:
    key = key_of(request("a"))
    for writes in (True, True, False):
        store = Store(tmp_path, writes=writes)
        with pytest.raises(QueryError, match="malformed"):
            if store.rows(key) is None:
                store.keep(key, request("a"), "", [], "it is malformed")
        assert (store.answers, len(store)) == (1, 0)
        store.close()


def test_the_manifest_names_the_answers_that_are_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if another server records into the folder at that moment."""
    before = kept(tmp_path, ["a"])
    verify = Store.verify

    def meanwhile(self: Store, *rest: Any) -> None:
        verify(self, *rest)
        kept(tmp_path, ["b"])

    monkeypatch.setattr(Store, "verify", meanwhile)
    web = WebSettings(provider="serper", mode="replay", options={"gl": "no", "hl": "en"})
    passages, _, manifest = open_without_corpus(tmp_path, web)
    assert manifest["corpus"] == f"recorded {before}" != f"recorded {recorded_digest(tmp_path)}"
    assert len(passages) == 2


def pages_of(query: str, number: int) -> list[Document]:
    return [PAGE.model_copy(update={"id": f"https://{query}.org/{n}", "text": f"{query} {n}"}) for n in range(number)]


@given(st.lists(st.tuples(st.text("abc", min_size=1, max_size=2), st.integers(0, 5)), max_size=12))
def test_a_hit_of_a_live_search_keeps_its_page_and_the_memory_only_the_latest(searches: list[tuple[str, int]]) -> None:
    latest = Latest(most=4)
    found = [(latest.keep("key", "{}", "{}", pages_of(*one)), pages_of(*one)) for one in searches]
    assert all([latest[row] for row in rows] == pages for rows, pages in found)
    shown = [page for _, pages in found for page in pages][-4:]
    assert len(latest) == len(shown)
    assert sorted(latest[row].id for row in range(len(latest))) == sorted(page.id for page in shown)
    for name in {page.id for _, pages in found for page in pages}:
        row = latest.row_of(name)
        assert (row is not None) == (name in {page.id for page in shown}), name
        assert row is None or latest[row].id == name


def test_a_live_search_has_its_own_budget() -> None:
    latest = Latest()
    assert [latest.pay(2), latest.pay(None), latest.pay(2), latest.pay(None)] == [True, True, False, True]
    with pytest.raises(QueryError, match="malformed"):
        latest.keep("key", "{}", "", [], "it is malformed")


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE pages SET document = replace(document, 'about a', 'about b') WHERE row = 1",
        "UPDATE pages SET id = 'https://b.org/' WHERE row = 1",
        "UPDATE pages SET key = 'other' WHERE row = 1",
        "UPDATE pages SET row = 7 - row",
        "DELETE FROM pages WHERE row = 0",
        "INSERT INTO pages SELECT 9, 'other', id, document FROM pages WHERE row = 0",
        "UPDATE answers SET body = '{}' WHERE body LIKE '%a%'",
        "UPDATE answers SET refused = 'it is malformed' WHERE body LIKE '%a%'",
        "UPDATE answers SET request = replace(request, 'a', 'c')",
        "DELETE FROM answers WHERE body LIKE '%a%'",
    ],
)
def test_whatever_is_changed_in_a_recording_is_found(tmp_path: Path, change: str) -> None:
    store = Store(tmp_path)
    for query in ("a", "b"):
        store.keep(key_of(request(query)), request(query), f'{{"about": "{query}"}}', [PAGE, *pages_of(query, 1)])
    store.verify()
    with closing(sqlite3.connect(tmp_path / STORE)) as db, db:
        db.execute(change)
    with pytest.raises(RetrievalError, match="were changed after they were recorded"):
        store.verify()


@pytest.mark.parametrize("damage", ["changed", "cut", "emptied", "missing"])
def test_damaged_records_are_refused_with_what_to_do(tmp_path: Path, damage: str) -> None:
    kept(tmp_path, ["a", "b"])
    path = tmp_path / STORE
    if damage == "changed":
        with sqlite3.connect(path) as db:
            db.execute("UPDATE answers SET body = '{}' WHERE key = ?", (key_of(request("a")),))
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:5000] if damage == "cut" else b"not a database" * 100)
    web = WebSettings(provider="serper", mode="replay")
    with pytest.raises(RetrievalError, match="What to do"):
        kind_of(web).open(tmp_path, web, report=lambda *_: None)


def test_the_identity_is_that_of_the_kept_answers_in_a_replay_alone(tmp_path: Path) -> None:
    kept(tmp_path, ["a"])
    modes = ("live", "record", "replay", "replay_else_empty")
    told = {mode: WebSettings.model_validate({"provider": "serper", "mode": mode}) for mode in modes}
    kind = kind_of(told["live"])
    sources = {mode: kind.source(tmp_path, web) for mode, web in told.items()}
    assert sources["live"] == sources["record"] == "the web"
    assert sources["replay"] == sources["replay_else_empty"] == f"recorded {recorded_digest(tmp_path)}"
    identities = {mode: web.identity() for mode, web in told.items()}
    assert identities["live"] == identities["record"] == identities["replay"] != identities["replay_else_empty"]
