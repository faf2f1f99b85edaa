"""The server with a reranker behind its index, over HTTP: what it answers, counts, records, and does without it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from retrieval_server.app.service import opener
from retrieval_server.backends.bm25.settings import Bm25Settings
from retrieval_server.backends.hybrid.settings import HybridSettings
from retrieval_server.config import ServerSettings, rerank_settings
from retrieval_server.corpus import Corpus, silent
from retrieval_server.errors import RetrievalError
from retrieval_server.indexing import build_index, load_index
from retrieval_server.reranking.stage import Reranked
from retrieval_server.schemas import REFUSED_HEADER
from s3_agent.data_identity import index_identity, retriever_text
from s3_agent.recipe import load_recipe
from tests.rerank_services import Answer, RerankService, cohere, plain_score, search_r1, serving_reranker
from tests.served_corpus import serving_rows
from tests.tiny_models import save_cross_encoder

ROWS = [
    {"id": "a", "contents": '"Norway"\nThe currency of Norway is the krone, a krone of old.'},
    {"id": "b", "title": "Sweden", "text": "The currency of Sweden is the krona."},
    {"id": "c", "contents": '"Oslo"\nOslo is a city in Norway.'},
    {"id": "d", "contents": '"Nile"\nThe Nile is a river.'},
    {"id": "e", "contents": '"Coins"\nA krone is a coin. Its currency is that of Norway.'},
]
CANDIDATES = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reranked")


@pytest.fixture(scope="module")
def service() -> Iterator[RerankService]:
    with serving_reranker(cohere) as running:
        yield running


@pytest.fixture(scope="module")
def url(folder: Path, service: RerankService) -> Iterator[str]:
    settings = {"style": "cohere", "model": "m", "url": service.url, "candidates": CANDIDATES, "patience_s": 0.0}
    (folder / "rerank.yaml").write_text(yaml.safe_dump(settings))
    with serving_rows(folder, ROWS, "--rerank", str(folder / "rerank.yaml")) as url:
        yield url


def ask(url: str, path: str = "/retrieve", **body: Any) -> httpx.Response:
    return httpx.post(url + path, json=body, timeout=30)


def expected(folder: Path, query: str) -> list[tuple[str, float, float]]:
    """By hand: the index's best, each with the fake's score for its title and text: id, score, the index's score."""
    corpus = Corpus(folder / "corpus.jsonl")
    [hits] = load_index(corpus, folder / "index", Bm25Settings()).search([query], topk=CANDIDATES)
    scored = [
        (corpus[row].id, plain_score(query, f"{corpus[row].title}\n{corpus[row].text}"), first) for row, first in hits
    ]
    return sorted(scored, key=lambda one: -one[1])


def test_hits_come_in_the_rerankers_order_with_the_score_of_each_stage(url: str, folder: Path) -> None:
    for query in ("currency of Norway", "krone", "city river Norway"):
        wanted = expected(folder, query)
        [hits] = ask(url, queries=[query], topk=3, return_stages=True).json()["result"]
        assert [hit["document"]["id"] for hit in hits] == [name for name, _, _ in wanted]
        for hit, (_, score, first) in zip(hits, wanted, strict=True):
            assert hit["score"] == pytest.approx(score)
            assert hit["stages"] == pytest.approx({"bm25": first, "rerank": score})
        [one] = ask(url, queries=[query], topk=1, return_scores=True).json()["result"]
        assert one == [{name: value for name, value in hits[0].items() if name != "stages"}]
    assert ask(url, queries=["unheardof", "Nile"], return_stages=True).json()["result"][0] == []


def test_more_than_the_candidates_is_refused_and_excluded_ids_are_left_out(url: str, folder: Path) -> None:
    refused = ask(url, queries=["krone"], topk=CANDIDATES + 1)
    assert refused.status_code == 422 and refused.json()["error"]["remedy"] == f"ask for at most {CANDIDATES}"
    names = [name for name, _, _ in expected(folder, "currency of Norway")]
    [left] = ask(url, queries=["currency of Norway"], topk=3, exclude=names[:1]).json()["result"]
    assert [document["id"] for document in left] == names[1:]


def test_the_reranker_is_recorded_and_its_time_is_counted(url: str, folder: Path) -> None:
    ask(url, queries=["Oslo city"])
    ready = httpx.get(f"{url}/readyz").json()
    assert ready["rerank"] == {
        "style": "cohere",
        "candidates": CANDIDATES,
        "query": "{query}",
        "passage": "{title}\n{text}",
        "model": "m",
        "extra": {},
    }
    counted = httpx.get(f"{url}/metrics").text
    for stage in ("bm25", "rerank"):
        assert f'retrieval_stage_seconds_count{{stage="{stage}"}}' in counted


def test_without_its_reranker_a_search_fails_and_is_no_answer_of_the_index(url: str, service: RerankService) -> None:
    service.answer = lambda body: (503, {"error": "out of memory"})
    try:
        away = ask(url, queries=["river of the north"])
        assert away.status_code == 503 and away.json()["error"]["code"] == "away"
        assert service.url in away.json()["error"]["message"] and int(away.headers["retry-after"]) >= 1
        again = ask(url, "/rerank", queries=["a"], documents=[[{"contents": "b"}]])
        assert (again.status_code, again.json()["error"]["code"]) == (503, "away")
        service.answer = lambda body: (200, {"results": []})
        wrong = ask(url, queries=["river of the south"])
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (500, "search_failed")
        wrong = ask(url, "/rerank", queries=["a"], documents=[[{"contents": "b"}]])
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (500, "search_failed")
    finally:
        service.answer = cohere
    assert ask(url, queries=["river of the north"]).json()["result"][0][0]["id"] == "d"


def test_a_query_that_the_reranker_refuses_is_malformed_and_a_passage_is_not(url: str, service: RerankService) -> None:
    def answer(body: Any) -> Answer:
        refused = any(
            "north" in text.split() or "rivers" in text.split() for text in (body["query"], *body["documents"])
        )
        return (400, {"error": "the input is too long"}) if refused else cohere(body)

    service.answer = answer
    try:
        bad = ask(url, queries=["a river in the north", "city of rivers", "krone of Oslo"], topk=1)
        assert [len(hits) for hits in bad.json()["result"]] == [0, 0, 1] and bad.headers[REFUSED_HEADER] == "2"
        alone = ask(url, queries=["the north river"])
        assert (alone.status_code, alone.json()["error"]["code"]) == (422, "bad_query")
        own = {"queries": ["north"], "documents": [[{"contents": "b"}]]}
        assert ask(url, "/rerank", **own).json()["error"]["code"] == "bad_query"
        own = {"queries": ["a"], "documents": [[{"contents": "T\nthe north"}]]}
        before = len(service.asked)
        passage = ask(url, "/rerank", **own)
        assert (passage.status_code, passage.json()["error"]["code"]) == (403, "refused_by_reranker")
        assert "rerank.characters" in passage.json()["error"]["remedy"] and len(service.asked) == before + 2
    finally:
        service.answer = cohere


def test_a_reranker_of_more_candidates_than_the_built_index_gives_does_not_start(
    folder: Path, service: RerankService, tmp_path: Path
) -> None:
    parts = {"a": {"index": {"kind": "bm25"}}, "b": {"index": {"kind": "bm25", "b": 0.7}}}
    index = HybridSettings.model_validate({"parts": parts, "depth": CANDIDATES - 1})
    corpus = Corpus(folder / "corpus.jsonl")
    build_index(corpus, tmp_path / "index", index)
    rerank = rerank_settings.validate_python({"style": "cohere", "model": "m", "url": service.url, "candidates": 1_000})
    settings = ServerSettings(corpus=corpus.path, index=tmp_path / "index", rerank=rerank)  # `depth` of the manifest
    with pytest.raises(RetrievalError, match=r"`rerank.candidates`: `depth` is \d+, below the 1000 requested"):
        opener(settings, build=False)(silent)
    settings = settings.model_copy(update={"rerank": rerank.model_copy(update={"candidates": 2})})
    assert isinstance(opener(settings, build=False)(silent).backend, Reranked)


def test_half_a_surrogate_pair_of_a_clients_document_reaches_no_tokenizer(url: str, service: RerankService) -> None:
    body = rb'{"queries": ["krone"], "documents": [[{"contents": "T\nkrone \ud800"}]], "return_scores": true}'
    answer = httpx.post(f"{url}/rerank", content=body, timeout=30)
    assert answer.json()["result"][0][0]["document"] == "(Title: T) krone ?"
    assert service.asked[-1]["documents"] == ["(Title: T) krone ?"]


def search_r1_contents(document: str) -> str:
    """As Search-R1's retrieval-and-rerank server turns a reranked text into `contents` again."""
    title, _, text = document.removeprefix("(Title: ").partition(") ")
    return f"{title}\n{text}"


def test_search_r1s_client_reranks_what_it_retrieved(url: str) -> None:
    queries = ["currency of Norway", "river", "nothing"]
    found = ask(url, queries=queries, topk=3, return_scores=True).json()["result"]
    body = {"queries": queries, "documents": found, "rerank_topk": 2, "return_scores": True}
    result = ask(url, "/rerank", **body).json()["result"]
    assert [len(hits) for hits in result] == [min(2, len(hits)) for hits in found]
    for query, hits, given in zip(queries, result, found, strict=True):
        contents = {hit["document"]["contents"] for hit in given}
        for hit in hits:
            assert search_r1_contents(hit["document"]) in contents
            assert hit["score"] == pytest.approx(plain_score(query, hit["document"]))
        assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    bare = ask(url, "/rerank", **body | {"documents": [[hit["document"] for hit in hits] for hits in found]})
    assert bare.json()["result"] == result, "documents without the wrapper"
    texts = ask(url, "/rerank", **body | {"return_scores": False}).json()["result"]
    assert texts == [[hit["document"] for hit in hits] for hits in result]
    combined = ask(url, queries=queries, topk_retrieval=10, topk_rerank=2, return_scores=True).json()["result"]
    assert combined == [hits[:2] for hits in found]


def test_a_query_to_rerank_for_is_cut_as_one_to_search_for(url: str, service: RerankService) -> None:
    assert ask(url, "/rerank", queries=["a" * 10_000], documents=[[{"contents": "b"}]]).status_code == 200
    assert service.asked[-1]["query"] == "a" * 8192


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"queries": ["a"]}, 422, "invalid_request"),
        ({"queries": ["a"], "documents": []}, 422, "invalid_request"),
        ({"queries": ["a"], "documents": [[{"text": "b"}]]}, 422, "invalid_request"),
        ({"queries": ["a"], "documents": [[{"contents": "b"}] * 20_000]}, 413, "too_many_documents"),
        ({"queries": ["a"], "documents": [[]], "rerank_topk": 2000}, 422, "topk_too_large"),
    ],
)
def test_a_request_that_can_not_be_reranked_is_refused(url: str, body: Any, status: int, code: str) -> None:
    refused = ask(url, "/rerank", **body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)
    assert refused.json()["error"]["remedy"]


def test_our_own_server_is_a_rerank_service_of_another(url: str, folder: Path, tmp_path: Path) -> None:
    """`style: search_r1` speaks to any server of that contract, so also to ours."""
    settings = {"style": "search_r1", "url": f"{url}/rerank", "candidates": CANDIDATES}
    (tmp_path / "rerank.yaml").write_text(yaml.safe_dump(settings))
    with serving_rows(tmp_path, ROWS, "--rerank", str(tmp_path / "rerank.yaml")) as second:
        [hits] = ask(second, queries=["currency of Norway"], return_scores=True).json()["result"]
        assert hits[0]["score"] == pytest.approx(plain_score("currency of Norway", search_r1_shown(hits[0])))
        refused = ask(second, queries=["a"], topk=CANDIDATES + 1)
        assert refused.status_code == 422


def search_r1_shown(hit: Any) -> str:
    """A passage as Search-R1's rerank server reads it."""
    answered = search_r1({"queries": ["x"], "documents": [[hit["document"]]], "rerank_topk": 1})
    return answered[1]["result"][0][0]["document"]


def test_without_a_reranker_there_is_none(tmp_path: Path) -> None:
    with serving_rows(tmp_path, ROWS) as plain:
        refused = ask(plain, "/rerank", queries=["a"], documents=[[{"contents": "b"}]])
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "no_reranker")
        [hits] = ask(plain, queries=["krone"], return_stages=True).json()["result"]
        assert all(hit["stages"] == {"bm25": hit["score"]} for hit in hits) and len(hits) == 2
        assert "rerank" not in httpx.get(f"{plain}/readyz").json()


def test_a_cross_encoder_in_the_servers_process(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = tmp_path / "model"
    words = sorted({word.strip('".,').lower() for row in ROWS for word in " ".join(row.values()).split()})
    save_cross_encoder(model, words=words)
    (tmp_path / "rerank.yaml").write_text(yaml.safe_dump({"style": "cross_encoder", "model": str(model)}))
    with serving_rows(tmp_path, ROWS, "--rerank", str(tmp_path / "rerank.yaml")) as url:
        [hits] = ask(url, queries=["currency of Norway"], topk=5, return_scores=True).json()["result"]
    tokenizer = AutoTokenizer.from_pretrained(model)
    classifier = AutoModelForSequenceClassification.from_pretrained(model).eval()
    corpus = Corpus(tmp_path / "corpus.jsonl")
    wanted = []
    for row, _ in load_index(corpus, tmp_path / "index", Bm25Settings()).search(["currency of Norway"], topk=5)[0]:
        pair = tokenizer("currency of Norway", f"{corpus[row].title}\n{corpus[row].text}", return_tensors="pt")
        with torch.inference_mode():
            wanted.append((corpus[row].id, float(classifier(**pair).logits[0, 0])))
    wanted.sort(key=lambda one: -one[1])
    assert [hit["document"]["id"] for hit in hits] == [name for name, _ in wanted]
    assert [hit["score"] for hit in hits] == pytest.approx([score for _, score in wanted], abs=1e-4)


def test_a_recipes_reranker_reaches_the_server_and_the_fingerprint(
    url: str, folder: Path, service: RerankService
) -> None:
    from s3_agent.processes.commands import rerank_file, retriever_command, write_retriever_files

    overrides = [f"data.corpus={folder / 'corpus.jsonl'}", f"retriever.folder={folder / 'index'}"]
    plain = index_identity(load_recipe("cpu", overrides))
    reranks = ["style=cohere", "model=m", f"url={service.url}", "candidates=60"]
    recipe = load_recipe("cpu", [*overrides, *(f"retriever.rerank.{value}" for value in reranks)])
    own = index_identity(recipe)
    assert own["rerank"]["candidates"] == 60 and "url" not in own["rerank"]
    assert retriever_text(own) != retriever_text(plain) and '"rerank"' not in retriever_text(plain)
    served = httpx.get(f"{url}/readyz").json()
    assert json.loads(retriever_text(served))["rerank"] == own["rerank"] | {"candidates": CANDIDATES}
    write_retriever_files(recipe)
    assert yaml.safe_load(rerank_file(recipe).read_text())["url"] == service.url
    command = retriever_command(recipe, port=1)
    assert command[command.index("--rerank") + 1] == str(rerank_file(recipe))
    assert "--rerank" not in retriever_command(load_recipe("cpu", overrides), port=1)
