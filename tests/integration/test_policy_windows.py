"""Policies with small windows, strict servers and other templates over real HTTP: `ask`, `eval` and the worker pool."""

import asyncio
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from typer.testing import CliRunner, Result

from s3_agent.agents.base import Limits
from s3_agent.agents.s3 import S3Agent
from s3_agent.agents.search_r1 import SearchR1Agent
from s3_agent.agl.one_task import OneTaskSettings, policy_at
from s3_agent.cli.main import app
from s3_agent.clients.chat_policy import ChatPolicy
from s3_agent.clients.http import attempt_ends, call_json
from s3_agent.clients.policy import CompletionsPolicy, Policy
from s3_agent.clients.tokenizer import load_tokenizer
from s3_agent.embedded import NANO_POLICY
from s3_agent.errors import PolicyError
from s3_agent.testing.fakes import FakeGenerator, FakePolicy, FakeRetriever
from s3_agent.testing.servers import generator_app, policy_app, retriever_app, serve
from s3_agent.types import Passage, StopReason, Task
from tests.unit.clients.test_chat_templates import BASE, LISTS

DOC = Passage(id="1", title="Norway", text="The currency of Norway is the krone. " * 60)
QUESTION = "What is the currency of Norway?"
TASK = Task(id="t", question=QUESTION, golden_answers=("krone",), initial_passages=())
TOKENIZER = load_tokenizer(str(NANO_POLICY))
LIMITS = Limits(initial_topk=0, topk=2, max_searches=6, max_new_tokens=300, max_context_tokens=8000)


def searcher(read: str) -> str:
    """Searches for ever, in whichever protocol it is asked."""
    s3 = "<question>" in read or "<query>" in read or "important_info" in read
    return '<query>{"query": "Norway"}</query>' if s3 else "<search>Norway</search>"


@contextmanager
def served(policy: FakePolicy, **how: Any) -> Iterator[str]:
    with serve(policy_app(policy, **how)) as url:
        yield url + "/v1"


async def play(url: str, agent: Any, *, mode: str) -> Any:
    async with httpx.AsyncClient(timeout=20.0) as http:
        common: dict[str, Any] = {"model": "fake-policy", "temperature": 0.0, "patience_s": 0.5}
        policy: Policy = (
            ChatPolicy(http, url, **common)
            if mode == "chat"
            else CompletionsPolicy(http, url, TOKENIZER, asks_window=True, repeatable=True, **common)
        )
        return await agent.run(TASK, policy=policy, retriever=FakeRetriever(default=(DOC, DOC)))


@pytest.mark.parametrize("shortens", [False, True], ids=["refuses", "shortens"])
@pytest.mark.parametrize("vllm", [False, True], ids=["strict", "vllm"])
@pytest.mark.parametrize("window", [600, 1100])
@pytest.mark.parametrize("mode", ["tokens", "chat"])
@pytest.mark.parametrize("name", ["s3", "search_r1", "agl_chat"])
async def test_an_episode_ends_at_the_servers_window(
    name: str, mode: str, window: int, vllm: bool, shortens: bool
) -> None:
    agent = (
        S3Agent(limits=LIMITS, prompt="compact")
        if name == "s3"
        else SearchR1Agent(limits=LIMITS, prompt="compact", agl_chat=name == "agl_chat")
    )
    fake = FakePolicy(searcher, TOKENIZER)
    with served(fake, context_tokens=window, vllm=vllm, shortens=shortens) as url:
        episode = await play(url, agent, mode=mode)
    assert episode.stop_reason is StopReason.CONTEXT_FULL
    assert 0 < len(episode.turns) < 7
    used = max(turn.prompt_tokens + turn.response_tokens for turn in episode.turns)
    assert used <= window


async def test_a_server_that_shortens_what_it_does_not_announce_fails_the_episode() -> None:
    """As newer vLLM behind a proxy that reports no window."""
    fake = FakePolicy(lambda _: "<w> " * 400, TOKENIZER)
    app_ = policy_app(fake, context_tokens=300, shortens=True)

    @app_.middleware("http")
    async def no_models(request: Request, call_next: Any) -> Response:
        return Response(status_code=404) if request.url.path == "/v1/models" else await call_next(request)

    with serve(app_) as url:
        for mode in ("tokens", "chat"):
            with pytest.raises(PolicyError, match="of 300 tokens") as caught:
                await play(url + "/v1", SearchR1Agent(limits=LIMITS, prompt="compact"), mode=mode)
            assert caught.value.status == 413


# `ask` and `eval`


class Asked:
    """The command line with everything but the policy."""

    def __init__(self, folder: Path, retriever_url: str, generator_url: str) -> None:
        self.folder = folder
        self.services = [f"retriever.url={retriever_url}", f"generator.url={generator_url}/v1", "gateway.port=0"]

    def ask(self, url: str, *options: str) -> Result:
        return CliRunner().invoke(app, ["ask", QUESTION, "--policy-url", url, "--json", *options, *self.services])

    def evaluate(self, url: str, *options: str) -> Result:
        data = self.folder / "questions.jsonl"
        rows = [
            {"id": f"q{size}", "question": f"{'really ' * size}what?", "golden_answers": ["krone"]}
            for size in (1, 20, 40)
        ]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        arguments = ["--data", str(data), "--agents", "s3,search_r1", "--plain", "--out", str(self.folder / "out")]
        policies = ["--policy", f"s3={url},search_r1={url}"]
        return CliRunner().invoke(app, ["eval", *arguments, *policies, *options, *self.services])


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Asked]:
    with (
        serve(retriever_app(FakeRetriever(default=(DOC,)))) as retriever_url,
        serve(generator_app(FakeGenerator("the krone"))) as generator_url,
    ):
        yield Asked(tmp_path, retriever_url, generator_url)


@pytest.mark.parametrize("mode", ["tokens", "chat"])
def test_no_question_is_missing_from_an_evaluation_because_of_a_small_window(asked: Asked, mode: str) -> None:
    fake = FakePolicy(searcher, TOKENIZER)
    with served(fake, context_tokens=900) as url:
        done = asked.evaluate(url, f"policy.mode={mode}")
    assert done.exit_code == 0, done.output
    lines = (asked.folder / "out" / "results.jsonl").read_text().splitlines()
    results = [json.loads(line) for line in lines]
    assert [result["state"] for result in results] == ["done"] * 6
    assert "context_full" in {result["episode"]["stop_reason"] for result in results}


@pytest.mark.parametrize("mode", ["tokens", "chat"])
def test_a_window_that_the_server_does_not_report_is_the_recipes(asked: Asked, mode: str) -> None:
    fake = FakePolicy(searcher, TOKENIZER)
    with served(fake) as url:
        done = asked.ask(url, f"policy.mode={mode}", "policy.context_tokens=700")
    assert done.exit_code == 0, done.output
    episode = json.loads(done.stdout)["episode"]
    assert episode["stop_reason"] == "context_full"
    assert max(turn["prompt_tokens"] + turn["response_tokens"] for turn in episode["turns"]) <= 700


@pytest.fixture
def loses(tmp_path: Path) -> str:
    """A template that takes content as a list of parts."""
    path = tmp_path / "lists.jinja"
    path.write_text(LISTS)
    return f"policy.chat_template={path}"


@pytest.mark.parametrize("command", ["ask", "evaluate"])
def test_a_template_that_loses_the_message_is_refused_before_anything_is_asked(
    asked: Asked, loses: str, command: str
) -> None:
    fake = FakePolicy(searcher, TOKENIZER)
    with served(fake) as url:
        done = getattr(asked, command)(url, loses)
    assert done.exit_code != 0 and "shows a user's message 0 times" in str(done.exception)
    assert fake.prompts == []


@pytest.mark.parametrize("command", ["ask", "evaluate"])
def test_a_template_file_is_no_business_of_a_server_that_applies_its_own(
    asked: Asked, loses: str, command: str
) -> None:
    with served(FakePolicy(searcher, TOKENIZER)) as url:
        done = getattr(asked, command)(url, loses, "policy.mode=chat")
    assert "start that server with --chat-template" in str(done.exception)


def test_a_base_model_is_asked_in_the_recipes_template(asked: Asked, tmp_path: Path) -> None:
    base, template = tmp_path / "base", tmp_path / "base.jinja"
    shutil.copytree(NANO_POLICY, base)
    (base / "chat_template.jinja").unlink()
    template.write_text(BASE + "{{ note }}")
    fake = FakePolicy(lambda _: "<search_complete>True</search_complete>", TOKENIZER)
    given = [f"policy.model={base}", f"policy.chat_template={template}", "policy.chat_template_kwargs.note=NB"]
    with served(fake) as url:
        assert "no chat template" in str(asked.ask(url, given[0]).exception)
        done = asked.ask(url, *given)
    assert done.exit_code == 0, done.output
    [prompt] = [TOKENIZER.decode(ids) for ids in fake.prompts]
    assert prompt.startswith("user: ") and prompt.endswith("assistant:NB")


# Waits


@contextmanager
def paused_gateway(times: int) -> Iterator[tuple[str, list[int]]]:
    """A gateway that says `times` times that it is paused, then answers."""
    gateway, asked = FastAPI(), [0]

    @gateway.post("/v1/completions")
    async def completions() -> Response:
        asked[0] += 1
        if asked[0] <= times:
            return Response(status_code=429, headers={"Retry-After": "0.05", "X-Agl-Paused": "true"})
        choice = {"token_ids": [1], "finish_reason": "stop"}
        return Response(json.dumps({"choices": [choice]}), media_type="application/json")

    with serve(gateway) as url:
        yield url + "/v1", asked


async def test_another_controllers_agent_waits_for_as_long_as_the_gateway_is_paused() -> None:
    with paused_gateway(12) as (url, asked):
        settings = OneTaskSettings(retriever_url="http://r", policy_tokenizer=str(NANO_POLICY), patience_s=0.2)
        async with httpx.AsyncClient() as http:
            policy = policy_at(http, settings, url)
            completion = await policy.complete([1], max_tokens=5, stop=())
    assert (completion.token_ids, asked) == ((1,), [13])


async def test_a_service_that_is_down_is_waited_for_until_the_attempt_ends() -> None:
    loop, started = asyncio.get_running_loop(), asyncio.get_running_loop().time()
    async with httpx.AsyncClient() as http:
        with attempt_ends(1.5), pytest.raises(PolicyError, match="ConnectError"):
            await call_json(http, "GET", "http://127.0.0.1:9/", error=PolicyError)
    assert 1.0 < loop.time() - started < 10.0
