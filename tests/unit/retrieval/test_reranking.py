"""Reranking equals scoring every candidate and sorting; a reranker that fails or is away never changes an order."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

pytest.importorskip("torch")

from retrieval_server.backends.base import StagedBackend, stages_of
from retrieval_server.config import ServerSettings, index_settings, rerank_settings
from retrieval_server.errors import QueryError, RetrievalError, SearchRefused, Unavailable
from retrieval_server.rerankers import RERANKERS, RerankSettings
from retrieval_server.reranking.stage import STAGE, Reranked
from retrieval_server.schemas import Document
from tests.rerank_services import Answer, RerankService, cohere, plain_score, search_r1, serving_reranker, tei
from tests.tiny_models import WORDS, save_colbert, save_cross_encoder

TEXTS = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(" ".join), max_size=12)
QUERIES = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join), min_size=1, max_size=4)


class TableOfHits:
    """The first passages that share a word with the query, all with the same score."""

    ignores_whitespace: ClassVar[bool] = True

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts

    def search(self, queries: Sequence[str], *, topk: int) -> list[list[tuple[int, float]]]:
        return [
            [(row, 0.5) for row, text in enumerate(self._texts) if set(text.split()) & set(query.split())][:topk]
            for query in queries
        ]

    def cost(self, query: str) -> int:
        return 1


class Plain:
    """`plain_score` as a reranker."""

    def scores(self, asked: Sequence[tuple[str, Sequence[str]]]) -> list[list[float]]:
        return [[plain_score(query, text) for text in texts] for query, texts in asked]


def documents(texts: Sequence[str]) -> list[Document]:
    return [Document(id=str(row), title="", text=text, contents=text) for row, text in enumerate(texts)]


def plain_ranking(texts: Sequence[str], query: str, candidates: int, topk: int) -> list[tuple[int, float]]:
    [hits] = TableOfHits(texts).search([query], topk=candidates)
    return sorted(((row, plain_score(query, texts[row])) for row, _ in hits), key=lambda hit: -hit[1])[:topk]


@given(texts=TEXTS, queries=QUERIES, candidates=st.integers(1, 6), topk=st.integers(1, 8))
@settings(max_examples=200, deadline=None)
def test_a_ranking_is_the_candidates_by_their_scores(
    texts: list[str], queries: list[str], candidates: int, topk: int
) -> None:
    chosen = RerankSettings(style="plain", candidates=candidates)
    backend = Reranked(TableOfHits(texts), Plain(), documents(texts), chosen, name="table")
    seconds: list[tuple[str, float]] = []
    backend.observe_with(lambda stage, spent: seconds.append((stage, spent)))
    found = backend.search(queries, topk=topk)
    assert found == [plain_ranking(texts, query, candidates, topk) for query in queries]
    assert found == [hits[:topk] for hits in backend.search(queries, topk=candidates)]
    for hits in found:
        for _, score in hits:
            assert stages_of(score, "?") == {"table": 0.5, STAGE: score}
    assert [stage for stage, _ in seconds] == ["table", STAGE] * 2 and all(spent >= 0 for _, spent in seconds)


@given(title=st.text(max_size=8), text=st.text(max_size=8))
@settings(max_examples=100, deadline=None)
def test_a_passage_is_shown_in_one_pass(title: str, text: str) -> None:
    """A title or a text that holds a slot of the template changes nothing else."""
    document = Document(id="0", title=title, text=text, contents="")
    chosen = RerankSettings(style="plain", query="Q: {query}", passage="<{title}|{text}>")
    assert chosen.passage_text(document) == f"<{title}|{text}>"
    assert chosen.query_text(title) == f"Q: {title}"
    assert RerankSettings(style="plain").passage_text(document) == f"{title}\n{text}".strip()


# --- models in the process ---


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cross-encoder")
    save_cross_encoder(folder)
    return folder


@pytest.fixture(scope="module")
def colbert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("colbert") / "model"
    save_colbert(folder)
    return folder


def opened(**values: Any) -> Any:
    chosen = rerank_settings.validate_python(values)
    return RERANKERS[chosen.style].load(chosen)


ASKED = [
    ("krone norway", ["river bank", "krone of norway", "river bank", "old castle bridge music water stone city"]),
    ("music", []),
    ("new", ["old city", "krone of norway"]),
]


def test_a_cross_encoders_scores_are_its_logits(cross_encoder: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(cross_encoder)
    model = AutoModelForSequenceClassification.from_pretrained(cross_encoder).eval()
    found = opened(style="cross_encoder", model=str(cross_encoder), batch=3).scores(ASKED)
    for (query, texts), scores in zip(ASKED, found, strict=True):
        for text, score in zip(texts, scores, strict=True):
            with torch.inference_mode():
                logit = model(**tokenizer(query, text, return_tensors="pt")).logits[0, 0]
            assert score == pytest.approx(float(logit), abs=1e-4)
    assert found[0][0] == found[0][2], "copies of a passage have equal scores"
    assert len({round(score, 3) for score in found[0]}) == 3


def test_late_interaction_sums_the_best_product_of_each_token(colbert: Path) -> None:
    from sentence_transformers import MultiVectorEncoder

    model = MultiVectorEncoder(str(colbert), device="cpu")
    found = opened(style="late_interaction", model=str(colbert)).scores(ASKED)
    for (query, texts), scores in zip(ASKED, found, strict=True):
        for text, score in zip(texts, scores, strict=True):
            tokens, own = model.encode_query(query).tolist(), model.encode_document(text).tolist()
            products = [max(sum(a * b for a, b in zip(left, right, strict=True)) for right in own) for left in tokens]
            assert score == pytest.approx(sum(products), abs=1e-4)
    short = opened(style="late_interaction", model=str(colbert), max_tokens=4).scores(ASKED)
    assert short[0][3] != pytest.approx(found[0][3]), "a long passage is cut"


@pytest.mark.parametrize("style", ["cross_encoder", "late_interaction"])
def test_a_model_without_a_trained_head_is_refused(style: str, tmp_path: Path, cross_encoder: Path) -> None:
    from transformers import AutoTokenizer, BertConfig, BertModel

    AutoTokenizer.from_pretrained(cross_encoder).save_pretrained(tmp_path)
    BertModel(BertConfig(vocab_size=17, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)).save_pretrained(
        tmp_path
    )
    with pytest.raises(
        RetrievalError, match=r"\(BertModel\) has no trained head(.|\n)*What to do: give `rerank.model`"
    ):
        opened(style=style, model=str(tmp_path))


def test_a_classifier_of_several_labels_is_refused(tmp_path: Path) -> None:
    save_cross_encoder(tmp_path, labels=3)
    with pytest.raises(RetrievalError, match="has 3 labels, a reranker has one"):
        opened(style="cross_encoder", model=str(tmp_path))


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RetrievalError, match=r"nothing can not be loaded on cpu(.|\n)*rerank.model"):
        opened(style="cross_encoder", model=str(tmp_path / "nothing"))


# --- services ---

SERVICES: list[tuple[str, Callable[[Any], Answer], dict[str, Any]]] = [
    ("cohere", cohere, {"model": "a-model"}),
    ("tei", tei, {}),
    ("search_r1", search_r1, {"passage": "{title}\n{text}"}),
]


@pytest.fixture(params=SERVICES, ids=lambda one: one[0])
def service(request: pytest.FixtureRequest) -> Iterator[tuple[RerankService, Any]]:
    style, answer, more = request.param
    with serving_reranker(answer) as running:
        yield running, opened(style=style, url=running.url, patience_s=0, **more)


def as_shown(style: RerankService, query: str, text: str) -> float:
    shown = f"(Title: {text}) " if style.answer is search_r1 else text
    return plain_score(query, shown)


def test_scores_come_back_in_the_order_of_the_texts(service: tuple[RerankService, Any]) -> None:
    running, reranker = service
    asked = [*ASKED, ("castle", [f"castle {number}" for number in range(70)])]
    found = reranker.scores(asked)
    assert found == [[as_shown(running, query, text) for text in texts] for query, texts in asked]
    sent = [len(body.get("texts") or body.get("documents")) for body in running.asked]
    assert max(sent) <= (32 if running.answer is tei else 70)


@given(texts=TEXTS, query=st.sampled_from(WORDS))
@settings(max_examples=20, deadline=None)
def test_a_services_ranking_is_the_plain_one(texts: list[str], query: str) -> None:
    for style, answer, more in SERVICES[:2]:
        with serving_reranker(answer) as running:
            chosen = rerank_settings.validate_python({"style": style, "url": running.url, "candidates": 5, **more})
            reranker = RERANKERS[style].load(chosen)
            backend = Reranked(TableOfHits(texts), reranker, documents(texts), chosen, name="table")
            assert backend.search([query], topk=3) == [plain_ranking(texts, query, 5, 3)]


def test_search_r1s_texts_that_look_alike_each_get_a_score() -> None:
    with serving_reranker(search_r1) as running:
        reranker = opened(style="search_r1", url=running.url)
        texts = ["x) y\nz", "x\ny) z"]
        [found] = reranker.scores([("y)", texts)])
    assert found == [plain_score("y)", "(Title: x) y) z")] * 2


def broken(change: Callable[[Any], Any]) -> Callable[[Any], Answer]:
    def answer(body: Any) -> Answer:
        status, right = cohere(body)
        change(right)
        return status, right

    return answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (broken(lambda right: right["results"].pop()), "one score for each of the 3 texts"),
        (broken(lambda right: right["results"].append(right["results"][0])), "one score for each of the 3 texts"),
        (broken(lambda right: right["results"][0].update(index=7)), "one score for each of the 3 texts"),
        (broken(lambda right: right["results"][0].update(relevance_score=math.nan)), "one score for each"),
        (broken(lambda right: right["results"][0].update(relevance_score=None)), "relevance_score"),
        (broken(lambda right: right.pop("results")), "relevance_score"),
        (lambda body: (200, []), "relevance_score"),
        (lambda body: (200, b"<html>"), "JSON"),
        (lambda body: (401, {}), "answered with 401(.|\n)*name it in `key_variable`"),
    ],
)
def test_an_answer_without_a_score_for_each_text_is_an_error(answer: Callable[[Any], Answer], message: str) -> None:
    with serving_reranker(answer) as running:
        reranker = opened(style="cohere", model="m", url=running.url, patience_s=0)
        with pytest.raises(RetrievalError, match=message) as raised:
            reranker.scores([("krone", ["a", "krone", "b"])])
    assert not isinstance(raised.value, Unavailable)


def test_a_service_that_is_away_is_asked_again_and_then_an_error() -> None:
    failures = [503, 429, 500]

    def answer(body: Any) -> Answer:
        return (failures.pop(), {"error": "busy"}) if failures else cohere(body)

    with serving_reranker(answer) as running:
        reranker = opened(style="cohere", model="m", url=running.url, patience_s=60)
        assert reranker.scores([("krone", ["krone"])]) == [[plain_score("krone", "krone")]]
        assert len(running.asked) == 4
        url = running.url
    away = opened(style="cohere", model="m", url=url, patience_s=0)
    with pytest.raises(Unavailable, match=rf"the reranker at {url} does not answer(.|\n)*What to do: start it"):
        away.scores([("krone", ["krone"])])


def with_a_window(characters: int, status: int) -> Callable[[Any], Answer]:
    """A service that refuses a request with a longer text, or a longer query."""

    def answer(body: Any) -> Answer:
        if any(len(text) > characters for text in (body["query"], *body["documents"])):
            return status, {"error": "the text is too long"}
        return cohere(body)

    return answer


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_query_that_a_service_refuses_is_at_fault_and_a_passage_that_it_refuses_is_not(status: int) -> None:
    with serving_reranker(with_a_window(20, status)) as running:
        reranker = opened(style="cohere", model="m", url=running.url, patience_s=0)
        with pytest.raises(QueryError, match=f"answered with {status}.*the text is too long"):
            reranker.scores([("krone " * 9, ["a", "krone"])])
        with pytest.raises(SearchRefused, match=f"answered with {status}(.|\n)*`rerank.characters`") as raised:
            reranker.scores([("krone", ["a", "krone " * 9])])
        assert raised.value.status == 403, "no status by which clients take the query for malformed, or ask again"
        cut = opened(style="cohere", model="m", url=running.url, patience_s=0, characters=20)
        texts = ["a", "krone " * 9, "krone " * 8]
        assert cut.scores([("krone", texts)]) == [[plain_score("krone", text[:20]) for text in texts]]


def test_the_key_is_read_from_the_environment_and_is_in_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving_reranker(cohere) as running:
        monkeypatch.setenv("RERANK_KEY", "secret")
        chosen = {"style": "cohere", "model": "m", "url": running.url, "key_variable": "RERANK_KEY"}
        opened(**chosen).scores([("krone", ["krone"])])
        assert running.headers[0]["authorization"] == "Bearer secret"
        assert "secret" not in str(rerank_settings.validate_python(chosen))
        monkeypatch.delenv("RERANK_KEY")
        with pytest.raises(RetrievalError, match="RERANK_KEY is not set"):
            opened(**chosen)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"style": "unheard-of"}, "there is no reranker 'unheard-of'"),
        ({"model": "m"}, "`style` is missing: name one of cross_encoder"),
        ({"style": "cohere", "model": "m", "url": "localhost:8000/rerank"}, "`url` is not http"),
        ({"style": "cohere", "model": "m", "url": "http://user:pass@host/rerank"}, "user or a password"),
        ({"style": "cross_encoder", "model": "m", "passage": "{title}"}, "`passage` {text}"),
        ({"style": "cross_encoder", "model": "m", "query": "query"}, "`query` must contain {query}"),
        ({"style": "cross_encoder", "model": "m", "candidates": 0}, "greater than or equal to 1"),
        ({"style": "cross_encoder", "model": "m", "pages": 1}, "Extra inputs"),
    ],
)
def test_settings_that_can_not_work_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        rerank_settings.validate_python(values)


def test_fewer_candidates_than_passages_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"`rerank.candidates` is 2, below the 3 requested"):
        ServerSettings(
            corpus=Path("c"),
            index=Path("i"),
            topk=3,
            rerank=rerank_settings.validate_python({"style": "tei", "url": "http://h/", "candidates": 2}),
        )


def test_more_candidates_than_the_index_gives_are_refused() -> None:
    parts = {"a": {"index": {"kind": "bm25"}}, "b": {"index": {"kind": "bm25", "b": 0.7}}}
    index = index_settings.validate_python({"kind": "hybrid", "parts": parts, "depth": 40})
    rerank = rerank_settings.validate_python({"style": "tei", "url": "http://h/"})
    with pytest.raises(ValidationError, match=r"`rerank.candidates`: `depth` is 40, below the 50 requested"):
        ServerSettings(corpus=Path("c"), index=Path("i"), backend=index, rerank=rerank)


def test_answers_depend_on_the_model_and_the_texts_and_on_no_place() -> None:
    first = {"style": "cohere", "model": "m", "url": "http://one/rerank"}
    there = rerank_settings.validate_python(first).answers()
    elsewhere = rerank_settings.validate_python(first | {"url": "http://two/rerank", "parallel": 2}).answers()
    assert there == elsewhere
    changes = ({"model": "n"}, {"candidates": 7}, {"query": "Q: {query}"}, {"extra": {"priority": 1}})
    for change in (*changes, {"characters": 9}):
        assert rerank_settings.validate_python(first | change).answers() != there


@pytest.mark.parametrize("style", ["cross_encoder", "late_interaction"])
def test_answers_depend_on_the_precision_of_a_model_in_the_process_and_on_no_device(style: str) -> None:
    def answers(**more: Any) -> dict[str, Any]:
        return rerank_settings.validate_python({"style": style, "model": "m", **more}).answers()

    there = answers()
    assert there == answers(device="cuda", batch=4, dtype="float32") and "dtype" not in there
    assert answers(dtype="bfloat16") == there | {"dtype": "bfloat16"} != answers(dtype="float16")


def test_a_stage_inside_a_stage_reports_its_time() -> None:
    texts = ["krone"]
    chosen = RerankSettings(style="plain")
    inner: StagedBackend = Reranked(TableOfHits(texts), Plain(), documents(texts), chosen, name="table")
    outer = Reranked(inner, Plain(), documents(texts), chosen, name="inner")  # pyright: ignore[reportArgumentType]
    seen: list[str] = []
    outer.observe_with(lambda stage, seconds: seen.append(stage))
    [[(_, score)]] = outer.search(["krone"], topk=1)
    assert seen == ["table", STAGE, "inner", STAGE]
    assert set(stages_of(score, "?")) == {"table", STAGE}


@given(st.integers(1, 90), st.integers(1, 90) | st.none())
def test_a_list_is_no_longer_than_the_candidates_and_than_the_indexs_own(candidates: int, most: int | None) -> None:
    backend: Any = TableOfHits([])
    backend.most = most
    chosen = RerankSettings(style="plain", candidates=candidates)
    assert Reranked(backend, Plain(), [], chosen, name="table").most == min(candidates, most or candidates)


@pytest.mark.parametrize("style", ["tei", "search_r1"])
def test_two_addresses_are_one_reranker_only_if_the_model_is_named(style: str) -> None:
    def answers(port: int, model: str) -> dict[str, Any]:
        return rerank_settings.validate_python(
            {"style": style, "url": f"http://host:{port}/rerank", "model": model}
        ).answers()

    assert answers(1, "") != answers(2, "")
    assert answers(1, "a") == answers(2, "a") != answers(1, "b")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_finite_number_ends_the_search(bad: float) -> None:
    class Broken:
        def scores(self, asked: Sequence[tuple[str, Sequence[str]]]) -> list[list[float]]:
            return [[bad for _ in texts] for _, texts in asked]

    texts = ["river", "river bank"]
    backend = Reranked(TableOfHits(texts), Broken(), documents(texts), RerankSettings(style="broken"), name="table")
    for ask in (lambda: backend.search(["river"], topk=2), lambda: backend.scores([("river", texts)])):
        with pytest.raises(RetrievalError, match="reranker broken gave a score that is no finite number"):
            ask()


def test_a_clients_documents_are_scored_in_pieces_until_it_leaves() -> None:
    sizes: list[int] = []

    class Watched(Plain):
        def scores(self, asked: Sequence[tuple[str, Sequence[str]]]) -> list[list[float]]:
            sizes.append(sum(len(texts) for _, texts in asked))
            return super().scores(asked)

    backend = Reranked(TableOfHits([]), Watched(), [], RerankSettings(style="plain"), name="table")
    asked = [("river", ["river " * (number % 7 + 1) for number in range(150)]), ("old", ["old"])]
    assert backend.scores(asked) == Plain().scores(asked)
    assert sizes == [64, 64, 22, 1]
    asks = RerankSettings(style="plain", query="old {query}")
    assert Reranked(TableOfHits([]), Plain(), [], asks, name="table").scores([("river", ["old", "a"])]) == (
        Plain().scores([("old river", ["old", "a"])])
    )
    sizes.clear()
    with pytest.raises(RetrievalError, match="nobody waits"):
        backend.scores(asked, stopped=lambda: len(sizes) == 2)
    assert sizes == [64, 64]
