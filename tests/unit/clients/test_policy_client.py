"""The policy client: what it sends, which answers it refuses, and the retriever client beside it."""

import json
import sys
from typing import Any

import httpx
import pytest

from s3_agent.clients.policy import CompletionsPolicy
from s3_agent.clients.retriever import HttpRetriever, passage_of
from s3_agent.clients.tokenizer import HuggingFaceTokenizer, load_tokenizer
from s3_agent.embedded import NANO_POLICY
from s3_agent.errors import BoundaryError, ConfigError, PolicyError, RetrieverError
from s3_agent.testing.fakes import FakePolicy, ToyTokenizer
from s3_agent.types import Passage


def answering(answer: Any, sent: list[Any] | None = None, *, status: int = 200) -> httpx.AsyncClient:
    def handle(request: httpx.Request) -> httpx.Response:
        if sent is not None:
            sent.append((str(request.url), json.loads(request.content)))
        return httpx.Response(status, json=answer)

    return httpx.AsyncClient(transport=httpx.MockTransport(handle))


async def complete(answer: Any, sent: list[Any] | None = None, *, status: int = 200) -> Any:
    policy = CompletionsPolicy(answering(answer, sent, status=status), "http://p/v1/", ToyTokenizer(), temperature=0.6)
    return await policy.complete([1, 2], max_tokens=9, stop=("</query>",))


async def test_ids_go_out_and_ids_come_back() -> None:
    sent: list[Any] = []
    completion = await complete({"choices": [{"token_ids": [3, 4], "finish_reason": "stop"}]}, sent)
    assert (completion.token_ids, completion.finish_reason) == ((3, 4), "stop")
    [(url, body)] = sent
    assert url == "http://p/v1/completions"
    assert body == {
        "model": "auto",
        "temperature": 0.6,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "prompt": [1, 2],
        "max_tokens": 9,
        "stop": ["</query>"],
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "return_token_ids": True,
    }


@pytest.mark.parametrize(
    "answer",
    [
        {},
        [],
        "text",
        {"choices": []},
        {"choices": None},
        {"choices": ["x"]},
        {"choices": [{"text": "no ids"}]},
        {"choices": [{"token_ids": None}]},
        {"error": "overloaded"},
    ],
    ids=repr,
)
async def test_an_answer_without_token_ids_is_a_policy_error(answer: Any) -> None:
    with pytest.raises(PolicyError, match="without token ids") as caught:
        await complete(answer)
    assert "return_token_ids" in caught.value.remedy


async def test_a_policy_that_samples_nothing_is_an_error() -> None:
    with pytest.raises(PolicyError, match="sampled no token"):
        await complete({"choices": [{"token_ids": []}]})


async def test_a_refusal_keeps_its_status() -> None:
    with pytest.raises(PolicyError) as caught:
        await complete({"detail": "context too long"}, status=400)
    assert caught.value.status == 400


def test_the_nano_policys_tokenizer_round_trips_and_keeps_tags_whole() -> None:
    tokenizer = load_tokenizer(str(NANO_POLICY))
    text = '\n\n<information>Doc 1(Title: é漢) 12 </information>\n\n<query>{"query": "x"}</query><|im_end|>'
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids[:2]).endswith("<information>") or tokenizer.decode(ids[:3]).endswith("<information>")
    message = tokenizer.decode(tokenizer.chat("hello"))
    assert message == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert load_tokenizer(str(NANO_POLICY)) is tokenizer


@pytest.mark.parametrize("missing", ["jinja2", "transformers"])
def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=missing) as caught:
        HuggingFaceTokenizer(str(NANO_POLICY))
    assert "s3-agent[tokenizer]" in caught.value.remedy


def test_a_missing_tokenizer_is_a_config_error(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="no tokenizer at"):
        load_tokenizer(str(tmp_path / "nothing"))


async def test_fake_policies_stop_as_real_ones_do() -> None:
    policy = FakePolicy(["a</query>b", "abcdef"])
    stopped = await policy.complete([1], max_tokens=99, stop=("</query>",))
    assert policy.tokenizer.decode(stopped.token_ids) == "a</query>"
    cut = await policy.complete([1], max_tokens=3, stop=())
    assert (policy.tokenizer.decode(cut.token_ids), cut.finish_reason) == ("abc", "length")
    with pytest.raises(PolicyError):
        await policy.complete([1], max_tokens=3, stop=())


HIT = {"document": {"id": "1", "title": "t", "text": "x", "contents": "t\nx"}, "score": 1.0}


async def test_the_retriever_client_speaks_the_wire_contract() -> None:
    sent: list[Any] = []
    retriever = HttpRetriever(answering({"result": [[HIT], []]}, sent), "http://r/")
    assert await retriever.retrieve_batch(["a", ""], topk=3) == [(Passage(id="1", title="t", text="x"),), ()]
    assert sent == [("http://r/retrieve", {"queries": ["a", ""], "topk": 3, "return_scores": True})]


@pytest.mark.parametrize(
    "answer",
    [{}, {"result": [[{"score": 1}]]}, {"result": [[{"document": {}}]]}, {"result": [[HIT], [HIT]]}, {"result": 3}, []],
    ids=repr,
)
async def test_a_strange_retriever_answer_is_a_retriever_error(answer: Any) -> None:
    with pytest.raises(RetrieverError) as caught:
        await HttpRetriever(answering(answer), "http://r").retrieve("q", topk=1)
    assert isinstance(caught.value, BoundaryError) and caught.value.status is None


@pytest.mark.parametrize(
    ("document", "passage"),
    [
        ({"id": 7, "contents": '"A b"\nline 1\nline 2'}, Passage(id="7", title='"A b"', text="line 1\nline 2")),
        ({"contents": "one line"}, Passage(id="", title="", text="one line")),
        ({"id": None, "title": None, "text": "x"}, Passage(id="", title="", text="x")),
        ({"id": 7, "title": "T", "content": "x", "contents": "T. x"}, Passage(id="7", title="T", text="x")),
        ({"docid": "d", "text": "half \ud83d"}, Passage(id="d", title="", text="half ?")),
        ({"id": 1, "contents": "title\n\ntext"}, Passage(id="1", title="title", text="text")),
        ({"id": "x", "title": "t", "text": "x"}, Passage(id="x", title="t", text="x")),
    ],
)
def test_document_forms(document: dict[str, Any], passage: Passage) -> None:
    assert passage_of(document) == passage
