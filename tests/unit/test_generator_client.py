"""The generator client: messages of spec §3.2, answers that are empty and answers that never came."""

import json
from collections.abc import Iterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Body, FastAPI
from fastapi.responses import JSONResponse

from s3_agent.clients import generator as generator_module
from s3_agent.clients.fake_servers import generator_app, serve
from s3_agent.clients.fakes import FakeGenerator
from s3_agent.clients.generator import (
    ClaudeGenerator,
    GeneratorSettings,
    OpenAIGenerator,
    answer_messages,
    claude_message,
    make_generator,
    render_context,
)
from s3_agent.errors import ConfigError, GeneratorError
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
    [message] = claude_message("which money", PASSAGES)
    assert message["role"] == "user"
    assert f"\n\nContexts:\n{CONTEXT}\nQuestion: which money\n\nImportant: " in message["content"]


async def answer(reply: Any, *, settings: GeneratorSettings = SETTINGS, sent: list[Any] | None = None) -> str:
    def handle(request: httpx.Request) -> httpx.Response:
        if sent is not None:
            sent.append((str(request.url), json.loads(request.content)))
        return reply if isinstance(reply, httpx.Response) else httpx.Response(200, json=reply)

    async with httpx.AsyncClient(transport=httpx.MockTransport(handle)) as http:
        return await OpenAIGenerator(http, "http://g/v1/", settings).answer("q", PASSAGES)


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
                    "stop_reason": "end_turn",
                    "stop_sequence": None,
                    "usage": {"input_tokens": 1, "output_tokens": 1},
                }
            )


@pytest.fixture
def claude(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FakeClaude, ClaudeGenerator]]:
    pytest.importorskip("anthropic")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "test")
    monkeypatch.setattr(generator_module, "CLAUDE_RETRIES", 2)
    fake = FakeClaude()
    with serve(fake.app) as url:
        yield fake, ClaudeGenerator(GeneratorSettings(kind="anthropic", model="claude"), url=url)


async def test_claude_answers(claude: tuple[FakeClaude, ClaudeGenerator]) -> None:
    fake, generator = claude
    assert await generator.answer("q", PASSAGES) == "the krone"
    [body] = fake.requests
    assert body["messages"] == claude_message("q", PASSAGES)
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("claude", 500, 0.0)


async def test_claude_is_asked_again_when_overloaded(claude: tuple[FakeClaude, ClaudeGenerator]) -> None:
    fake, generator = claude
    fake.statuses = [529, 429]
    assert await generator.answer("q", PASSAGES) == "the krone"
    assert len(fake.requests) == 3


@pytest.mark.parametrize(
    ("status", "kept"), [(400, 400), (401, 401), (404, 404), (429, None), (500, None), (529, None)]
)
async def test_a_claude_that_fails_tells_refusal_from_outage(
    claude: tuple[FakeClaude, ClaudeGenerator], status: int, kept: int | None
) -> None:
    fake, generator = claude
    fake.statuses = [status] * 9
    with pytest.raises(GeneratorError, match="credentials") as caught:
        await generator.answer("q", PASSAGES)
    assert caught.value.status == kept
    assert len(fake.requests) == (1 if kept else 3)


async def test_claude_without_credentials_is_a_config_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    pytest.importorskip("anthropic")
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="anthropic"):
        await ClaudeGenerator(GeneratorSettings(kind="anthropic"), url="http://127.0.0.1:9").answer("q", PASSAGES)
    with pytest.raises(ConfigError, match="bedrock"):
        await ClaudeGenerator(GeneratorSettings(kind="bedrock")).answer("q", PASSAGES)
