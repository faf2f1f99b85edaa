"""The generator client: messages, answers that are empty and answers that never came."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Body, FastAPI
from fastapi.responses import JSONResponse
from hypothesis import given
from hypothesis import strategies as st

from s3_agent.clients import chat_model
from s3_agent.clients.generator import FrozenGenerator, GeneratorSettings, make_generator
from s3_agent.clients.prompts import AnswerPrompt, answer_messages, read_answer, render_context
from s3_agent.embedded import NANO_POLICY
from s3_agent.errors import ConfigError, GeneratorError
from s3_agent.testing.fakes import FakeGenerator
from s3_agent.testing.servers import generator_app, serve
from s3_agent.types import Passage

PASSAGES = (Passage(id="1", title='"Norway"', text="krone\nis money"), Passage(id="2", title="B (c)", text="x"))
CONTEXT = "Doc 1 (Title: Norway)\nkrone\nis money\n\nDoc 2 (Title: B (c))\nx\n\n"
SETTINGS = GeneratorSettings(model="m", patience_s=0.2)


def test_context_numbers_passages_and_drops_the_quotes_around_titles() -> None:
    assert render_context(PASSAGES) == CONTEXT
    assert render_context([]) == ""


def test_messages_hold_contexts_instruction_and_the_question_verbatim() -> None:
    system, user = answer_messages(" which money ", PASSAGES)
    assert (system["role"], user) == ("system", {"role": "user", "content": " which money "})
    assert f"\n\nContexts:\n{CONTEXT}\nImportant: " in system["content"]


def test_claude_gets_the_same_pieces_in_one_message() -> None:
    [message] = answer_messages("which money", PASSAGES, kind="anthropic")
    assert message["role"] == "user"
    assert f"\n\nContexts:\n{CONTEXT}\nQuestion: which money\n\nImportant: " in message["content"]


async def answer(reply: Any, *, settings: GeneratorSettings = SETTINGS, sent: list[Any] | None = None) -> str:
    def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(404)
        if sent is not None:
            sent.append((str(request.url), json.loads(request.content)))
        return reply if isinstance(reply, httpx.Response) else httpx.Response(200, json=reply)

    async with httpx.AsyncClient(transport=httpx.MockTransport(handle)) as http:
        return await make_generator(http, "http://g/v1/", settings).answer("q", PASSAGES)


async def test_it_asks_greedily_and_bounds_the_answer_only_when_told_to() -> None:
    sent: list[Any] = []
    reply = {"choices": [{"message": {"content": "krone"}}]}
    assert await answer(reply, sent=sent) == "krone"
    assert await answer(reply, sent=sent, settings=SETTINGS.model_copy(update={"max_tokens": 24})) == "krone"
    (url, first), (_, second) = sent
    assert url == "http://g/v1/chat/completions"
    assert first == {
        "model": "m",
        "messages": answer_messages("q", PASSAGES),
        "temperature": 0.0,
        "top_p": 1.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
    }
    assert second == first | {"max_tokens": 24}


async def test_an_answer_without_content_is_an_empty_answer() -> None:
    assert await answer({"choices": [{"message": {"content": None}}]}) == ""


@pytest.mark.parametrize("reply", [{}, [], {"choices": []}, {"choices": [{"text": "x"}]}, {"error": "x"}], ids=repr)
async def test_an_unknown_form_is_an_error_and_never_an_empty_answer(reply: Any) -> None:
    with pytest.raises(GeneratorError, match="unknown form"):
        await answer(reply)


async def test_a_refusal_and_a_failure_are_errors() -> None:
    with pytest.raises(GeneratorError) as refused:
        await answer(httpx.Response(400, text="too long"))
    assert refused.value.status == 400
    with pytest.raises(GeneratorError) as down:
        await answer(httpx.Response(500))
    assert down.value.status is None


async def test_over_http_a_generator_that_recovers_answers() -> None:
    fake = FakeGenerator("krone", failures=1)
    with serve(generator_app(fake)) as url:
        async with httpx.AsyncClient() as http:
            settings = SETTINGS.model_copy(update={"patience_s": 10.0})
            assert await make_generator(http, f"{url}/v1", settings).answer("q", PASSAGES) == "krone"
    assert len(fake.calls) == 2


def test_an_openai_generator_needs_an_address() -> None:
    with pytest.raises(ConfigError, match="needs an address"):
        make_generator(httpx.AsyncClient(), None, SETTINGS)


class FakeClaude:
    """Anthropic's `/v1/messages`, answering with each of `statuses` and then with 200."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.statuses: list[int] = []
        self.ended: tuple[str, int] = ("end_turn", 1)
        self.app = FastAPI()

        @self.app.post("/v1/messages")
        def messages(body: Annotated[dict[str, Any], Body()]) -> JSONResponse:
            self.requests.append(body)
            status = self.statuses.pop(0) if self.statuses else 200
            if status != 200:
                error = {"type": "error", "error": {"type": "api_error", "message": "as told"}}
                return JSONResponse(error, status_code=status, headers={"retry-after-ms": "1"})
            return JSONResponse(
                {
                    "id": "msg",
                    "type": "message",
                    "role": "assistant",
                    "model": body["model"],
                    "content": [{"type": "text", "text": "the "}, {"type": "text", "text": "krone"}],
                    "stop_reason": self.ended[0],
                    "stop_sequence": None,
                    "usage": {"input_tokens": 1, "output_tokens": self.ended[1]},
                }
            )


@pytest.fixture
def claude(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FakeClaude, FrozenGenerator]]:
    pytest.importorskip("anthropic")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "test")
    monkeypatch.setattr(chat_model, "CLAUDE_RETRIES", 2)
    fake = FakeClaude()
    with serve(fake.app) as url:
        yield fake, make_generator(httpx.AsyncClient(), url, GeneratorSettings(kind="anthropic", model="claude"))


async def test_claude_answers(claude: tuple[FakeClaude, FrozenGenerator]) -> None:
    fake, generator = claude
    assert await generator.answer("q", PASSAGES) == "the krone"
    [body] = fake.requests
    assert body["messages"] == answer_messages("q", PASSAGES, kind="anthropic")
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("claude", 500, 0.0)


async def test_claude_is_asked_again_when_overloaded(claude: tuple[FakeClaude, FrozenGenerator]) -> None:
    fake, generator = claude
    fake.statuses = [529, 429]
    assert await generator.answer("q", PASSAGES) == "the krone"
    assert len(fake.requests) == 3


@pytest.mark.parametrize(
    ("status", "kept"), [(400, 400), (401, 401), (404, 404), (429, None), (500, None), (529, None)]
)
async def test_a_claude_that_fails_tells_refusal_from_outage(
    claude: tuple[FakeClaude, FrozenGenerator], status: int, kept: int | None
) -> None:
    fake, generator = claude
    fake.statuses = [status] * 9
    with pytest.raises(GeneratorError, match="credentials") as caught:
        await generator.answer("q", PASSAGES)
    assert caught.value.status == kept
    assert len(fake.requests) == (1 if kept else 3)


@pytest.mark.parametrize(("written", "whole"), [(500, True), (499, False), (1, False)])
async def test_an_answer_of_claude_that_its_window_cut_is_none(
    claude: tuple[FakeClaude, FrozenGenerator], written: int, whole: bool
) -> None:
    fake, generator = claude
    fake.ended = ("max_tokens" if whole else "model_context_window_exceeded", written)
    if whole:
        assert await generator.answer("q", PASSAGES) == "the krone"
    else:
        with pytest.raises(GeneratorError, match=f"after {written} of 500 tokens"):
            await generator.answer("q", PASSAGES)


async def test_claude_without_credentials_is_a_config_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    pytest.importorskip("anthropic")
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="anthropic"):
        await make_generator(httpx.AsyncClient(), "http://127.0.0.1:9", GeneratorSettings(kind="anthropic")).answer(
            "q", PASSAGES
        )
    with pytest.raises(ConfigError, match="bedrock"):
        await make_generator(httpx.AsyncClient(), None, GeneratorSettings(kind="bedrock")).answer("q", PASSAGES)


LONG = tuple(Passage(id=str(number), title="T", text="word " * 100) for number in range(6))


def in_bytes(passages: Sequence[Passage]) -> int:
    return sum(len(message["content"].encode()) for message in answer_messages("q", passages))


async def fit_over_http(window: int | None, passages: Sequence[Passage], **settings: Any) -> tuple[Passage, ...]:
    fake = FakeGenerator("a")
    with serve(generator_app(fake, context_tokens=window)) as url:
        async with httpx.AsyncClient() as http:
            made = GeneratorSettings(**{"model": "fake", "max_tokens": 50, "patience_s": 0.5} | settings)
            generator = make_generator(http, f"{url}/v1", made)
            shown = await generator.fit("q", passages)
            assert await generator.answer("q", shown) == "a"
    return shown


@pytest.mark.parametrize(
    ("window", "settings"),
    [(1500, {}), (None, {"context_tokens": 600, "tokenizer": str(NANO_POLICY)})],
    ids=["server", "tokenizer"],
)
async def test_passages_that_the_generator_can_not_hold_lose_their_tails(
    window: int | None, settings: dict[str, Any]
) -> None:
    shown = await fit_over_http(window, LONG, **settings)
    assert 0 < len(shown) <= len(LONG)
    assert [passage.id for passage in shown] == [passage.id for passage in LONG[: len(shown)]]
    assert shown[:-1] == LONG[: len(shown) - 1], "only the last one is shortened"
    if not settings:
        assert 1200 < in_bytes(shown) <= 1450, "the room is used"


async def test_what_fits_is_not_touched_and_a_server_without_a_window_gets_all() -> None:
    assert await fit_over_http(10_000, LONG) == LONG
    assert await fit_over_http(None, LONG) == LONG


async def test_a_configured_window_needs_no_server_that_tells_it() -> None:
    assert len(await fit_over_http(None, LONG, context_tokens=1500)) < len(LONG)


async def test_a_prompt_that_does_not_fit_by_itself_says_so() -> None:
    with pytest.raises(GeneratorError, match="alone do not fit") as caught:
        await fit_over_http(150, LONG)
    assert caught.value.status == 413


@given(st.lists(st.text(alphabet="a漢 \n🜁", max_size=400), max_size=5), st.integers(400, 2500))
async def test_a_fitted_context_fits_whatever_is_written(texts: list[str], window: int) -> None:
    passages = [Passage(id=str(number), title="t", text=text) for number, text in enumerate(texts)]
    settings = GeneratorSettings(model="m", max_tokens=10, context_tokens=window)

    def count(request: httpx.Request) -> httpx.Response:
        messages = json.loads(request.content)["messages"]
        return httpx.Response(200, json={"count": sum(len(message["content"].encode()) for message in messages)})

    async with httpx.AsyncClient(transport=httpx.MockTransport(count)) as http:
        shown = await make_generator(http, "http://g/v1", settings).fit("q", passages)
    assert in_bytes(shown) <= window - 10
    assert [passage.id for passage in shown] == [passage.id for passage in passages[: len(shown)]]
    if in_bytes(passages) + 64 <= window - 10:
        assert list(shown) == passages


async def test_styles_without_passages() -> None:
    zero, cot = (answer_messages("q", (), prompt=AnswerPrompt(style)) for style in ("zero_shot", "cot"))
    assert zero[0]["content"].startswith("Important: ") and zero[1]["content"] == "q"
    assert "<answer>" in cot[0]["content"]
    assert len(answer_messages("q", (), kind="bedrock", prompt=AnswerPrompt("cot"))) == 1
    reply = "<think>x</think><answer> krone </answer><answer>b</answer>"
    assert (read_answer(reply, "cot"), read_answer("krone", "cot"), read_answer(reply, "context")) == (
        "krone",
        "krone",
        "<answer> krone </answer><answer>b</answer>",
    )


def test_what_stands_for_no_context() -> None:
    told = answer_messages("q", (), prompt=AnswerPrompt(empty="No context"))
    assert "Contexts:\nNo context\n" in told[0]["content"]
    assert answer_messages("q", PASSAGES, prompt=AnswerPrompt(empty="No context")) == answer_messages("q", PASSAGES)


def test_lines_are_the_layout_of_naive_rag() -> None:
    assert render_context(PASSAGES, "lines") == 'Doc 1 (Title: "Norway") krone\nis money\nDoc 2 (Title: "B (c)") x\n'


async def test_the_cache_folder_makes_one_call_of_two(tmp_path: Path) -> None:
    fake = FakeGenerator("krone")
    with serve(generator_app(fake)) as url:
        async with httpx.AsyncClient() as http:
            settings = GeneratorSettings(model="m", cache=tmp_path)
            makers = [make_generator(http, f"{url}/v1", settings) for _ in range(2)]
            assert [await generator.answer("q", PASSAGES) for generator in makers] == ["krone"] * 2
            assert await makers[0].answer("another", PASSAGES) == "krone"
    assert len(fake.calls) == 2
