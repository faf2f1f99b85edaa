"""A 200 that says it failed: no such generation is scored, judged, trained or kept. What was cut is counted."""

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from s3_agent.agents.search_r1 import SearchR1Agent
from s3_agent.clients.chat_policy import ChatPolicy
from s3_agent.clients.generator import FrozenGenerator, GeneratorSettings, answer_cut, make_generator
from s3_agent.clients.judge import JudgeSettings, make_judge
from s3_agent.clients.judge_forms import read_verdict
from s3_agent.clients.policy import CompletionsPolicy
from s3_agent.clients.prompts import read_answer
from s3_agent.clients.replies import most_tokens, without_thinking
from s3_agent.data.naive_rag.answers import naive_rag
from s3_agent.errors import GeneratorError, JudgeError, PolicyError
from s3_agent.rewards.gain_beyond_rag import ACCURACY
from s3_agent.rollout.scoring import score_generated
from s3_agent.testing.fakes import FakeRetriever, ToyTokenizer
from s3_agent.types import Episode, StopReason, Task

TASK = Task(id="t", question="q", golden_answers=("Ada",))
EPISODE = Episode(
    agent="rag", prompt="", initial_passages=(), turns=(), selected=(), stop_reason=StopReason.SEARCHES_USED
)
Answers = Callable[[httpx.Request], httpx.Response]


def choice(content: Any = "Ada", reason: Any = "stop", **message: Any) -> dict[str, Any]:
    return {"message": {"content": content, **message}, "finish_reason": reason}


def serving(*choices: Any) -> tuple[httpx.AsyncClient, list[str]]:
    """A server that answers with one choice after the other, the last for ever, and the paths that were asked.

    It says nothing about its models.
    """
    left, asked = list(choices), []

    def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(404)
        asked.append(request.url.path)
        return httpx.Response(200, json={"choices": [left.pop(0) if len(left) > 1 else left[0]]})

    return httpx.AsyncClient(transport=httpx.MockTransport(handle)), asked


def generator(http: httpx.AsyncClient, cache: Path | None = None) -> FrozenGenerator:
    settings = GeneratorSettings(model="m", patience_s=0.2, context_tokens=4096, cache=cache)
    return make_generator(http, "http://g/v1", settings)


FAILED = {
    "aborted": choice(reason="abort"),
    "filtered": choice(reason="content_filter"),
    "failed": choice(reason="error"),
    "unknown": choice(reason="overloaded"),
    "no reason that can be read": choice(reason=["stop"]),
    "only reasoning": choice(None, reasoning_content="Ada"),
    "only reasoning, as vLLM names it": choice("\n\n", reasoning="Ada"),
    "cut in its reasoning": choice(None, "length", reasoning_content="Ada"),
    "refused": choice(None, refusal="no"),
    "a tool": choice(None, tool_calls=[{"id": "1"}]),
    "only thinking": choice("<think>Ada</think>\n"),
    "cut while it thought": choice("<think>Ada", "length"),
}


@pytest.mark.parametrize("failed", FAILED.values(), ids=FAILED)
async def test_a_generation_that_failed_is_no_answer_and_is_never_kept(failed: Any, tmp_path: Path) -> None:
    http, asked = serving(failed, choice("Bob"))
    kept = generator(http, tmp_path)
    with pytest.raises(GeneratorError) as caught:
        await kept.answer("q", ())
    assert caught.value.status is None and caught.value.remedy
    assert await kept.answer("q", ()) == "Bob"
    assert len(asked) == 2


@pytest.mark.parametrize("failed", FAILED.values(), ids=FAILED)
async def test_a_judge_that_failed_gives_no_verdict(failed: Any) -> None:
    http, _ = serving(failed)
    judge = make_judge(http, "http://g/v1", JudgeSettings(rule="judge", model="m", patience_s=0.2))
    assert judge is not None
    with pytest.raises(JudgeError):
        await judge.check("q", "Ada", ["Ada"])


@pytest.mark.parametrize("name", [name for name in FAILED if "think" not in name and "thought" not in name])
async def test_a_chat_policy_that_failed_wrote_no_response(name: str) -> None:
    http, _ = serving(FAILED[name])
    with pytest.raises(PolicyError):
        await SearchR1Agent().run(TASK, policy=ChatPolicy(http, "http://p/v1", model="m"), retriever=FakeRetriever())


@pytest.mark.parametrize("reason", ["abort", "content_filter", "error", 7])
async def test_a_policy_that_failed_sampled_nothing_that_counts(reason: Any) -> None:
    http, _ = serving({"token_ids": [65, 66], "text": "AB", "finish_reason": reason})
    with pytest.raises(PolicyError, match="did not finish"):
        await CompletionsPolicy(http, "http://p/v1", ToyTokenizer()).complete([1], max_tokens=9, stop=())


@pytest.mark.parametrize(("reason", "most"), [("stop", 9), ("length", 2), (None, 9)])
async def test_a_policy_that_finished_or_was_cut_has_its_tokens(reason: Any, most: int) -> None:
    http, _ = serving({"token_ids": [65, 66], "text": "AB", "finish_reason": reason})
    completion = await CompletionsPolicy(http, "http://p/v1", ToyTokenizer()).complete([1], max_tokens=most, stop=())
    assert completion.token_ids == (65, 66)


def shortened(most: int, usage: Any, **rest: Any) -> httpx.AsyncClient:
    """A server whose replies end at their limit after what `usage` says."""
    cut = choice("Ada is", "length", **rest) | {"token_ids": [65, 66], "text": "AB"}

    def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(404)
        assert json.loads(request.content)["max_tokens"] == most
        return httpx.Response(200, json={"choices": [cut], "usage": usage})

    return httpx.AsyncClient(transport=httpx.MockTransport(handle))


SHORT = "after 2 of 9 tokens"
TWO = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}


async def test_a_policys_response_that_the_server_shortened_is_no_response() -> None:
    token = CompletionsPolicy(shortened(9, None), "http://p/v1", ToyTokenizer())
    chat = ChatPolicy(shortened(9, TWO), "http://p/v1", model="m")
    for conversation in (token.converse("q"), chat.converse("q"), chat.converse("q", template=False)):
        with pytest.raises(PolicyError, match=SHORT) as caught:
            await conversation.generate(max_tokens=9, stop=())
        assert caught.value.status == 413, "the same request would be shortened again"
        assert "context_tokens" in caught.value.remedy


async def test_an_answer_or_verdict_that_the_server_shortened_is_none() -> None:
    settings = GeneratorSettings(model="m", max_tokens=9, patience_s=0.2)
    with pytest.raises(GeneratorError, match=SHORT):
        await make_generator(shortened(9, TWO), "http://g/v1", settings).answer("q", ())
    judge = make_judge(shortened(9, TWO), "http://g/v1", JudgeSettings(rule="judge", model="m", max_tokens=9))
    assert judge is not None
    with pytest.raises(JudgeError, match=SHORT):
        await judge.check("q", "Ada", ["Ada"])


@pytest.mark.parametrize(
    ("usage", "whole"),
    [
        (None, True),
        ({}, True),
        ({"completion_tokens": "2"}, True),
        ({"completion_tokens": 9}, True),
        ({"completion_tokens": 10}, True),
        ({"completion_tokens": 2, "prompt_tokens": 7, "total_tokens": 16}, True),
        ({"completion_tokens": 8}, False),
        (TWO, False),
    ],
    ids=["none", "empty", "text", "all", "one more", "hidden reasoning", "one less", "two"],
)
async def test_what_was_written_is_what_the_server_counts(usage: Any, whole: bool) -> None:
    settings = GeneratorSettings(model="m", max_tokens=9, patience_s=0.2)
    generator_ = make_generator(shortened(9, usage), "http://g/v1", settings)
    if whole:
        assert await generator_.answer("q", ()) == "Ada is"
    else:
        with pytest.raises(GeneratorError, match="of 9 tokens"):
            await generator_.answer("q", ())


async def test_a_limit_by_its_newer_name_counts_too() -> None:
    body = {"max_tokens": None, "max_completion_tokens": 9}
    http, _ = serving(choice("Ada is", "length") | {"usage": TWO})
    policy = ChatPolicy(http, "http://p/v1", model="m", body=body)
    assert (await policy.converse("q").generate(max_tokens=500, stop=())).text == "Ada is", "no usage, no comparison"
    assert [most_tokens(asked) for asked in ({"max_completion_tokens": 9}, {"max_tokens": 5}, {})] == [9, 5, None]


async def test_a_model_that_says_nothing_has_an_empty_answer() -> None:
    http, _ = serving(choice(None), choice("", reasoning_content=None))
    assert [await generator(http).answer("q", ()), await generator(http).answer("q", ())] == ["", ""]


async def test_a_call_that_may_have_been_recorded_is_not_made_twice_in_one_attempt() -> None:
    asked = 0

    def cut(request: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise httpx.RemoteProtocolError("the tunnel closed", request=request)
        return httpx.Response(200, json={"choices": [{"token_ids": [65], "finish_reason": "stop"}]})

    http = httpx.AsyncClient(transport=httpx.MockTransport(cut))
    trained = CompletionsPolicy(http, "http://p/v1", ToyTokenizer())
    with pytest.raises(PolicyError, match="may have been carried out") as caught:
        await trained.complete([1], max_tokens=9, stop=())
    assert (asked, caught.value.status) == (1, None)
    asked = 0
    evaluated = CompletionsPolicy(http, "http://p/v1", ToyTokenizer(), repeatable=True)
    assert (await evaluated.complete([1], max_tokens=9, stop=())).token_ids == (65,)


async def test_a_cut_answer_is_scored_and_counted_also_when_it_is_kept(tmp_path: Path) -> None:
    http, asked = serving(choice("Ada is", "length"))
    kept = generator(http, tmp_path)
    scored = [
        await score_generated(TASK, EPISODE, reward=ACCURACY, generator=each, judge=None)
        for each in (kept, kept, generator(http, tmp_path))
    ]
    assert len(asked) == 1
    assert [(answer, reward.value, reward.metrics["answer_cut"]) for answer, reward in scored] == [
        ("Ada is", 1.0, 1.0)
    ] * 3
    assert [reward.metrics["answer_kept"] for _, reward in scored] == [0.0, 1.0, 1.0]
    whole, _ = serving(choice("Ada"))
    _, reward = await score_generated(TASK, EPISODE, reward=ACCURACY, generator=generator(whole), judge=None)
    assert reward.metrics["answer_cut"] == 0.0 and not answer_cut.get()


async def test_naive_rag_tells_how_many_answers_were_cut() -> None:
    http, _ = serving(choice("Ada is", "length"), choice("Ada"))
    tasks = [TASK, TASK.model_copy(update={"id": "u", "question": "another"})]
    kept: list[str] = []
    with capture_logs() as logs:
        await naive_rag(
            tasks,
            retriever=FakeRetriever(),
            generator=generator(http),
            topk=1,
            concurrency=1,
            keep=lambda name, _: kept.append(name),
        )
    assert kept == ["t", "u"]
    assert [(line["answers"], line["of"]) for line in logs if "token limit" in line["event"]] == [(1, 2)]


async def test_what_is_thought_is_not_the_answer() -> None:
    http, _ = serving(choice("<think>It is Ada.</think>\nBob"))
    answer, reward = await score_generated(TASK, EPISODE, reward=ACCURACY, generator=generator(http), judge=None)
    assert (answer, reward.value) == ("Bob", 0.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Bob", "Bob"),
        (" Bob ", " Bob "),
        ("<think>Ada</think> Bob", "Bob"),
        ("Ada, or</think>Bob", "Bob"),
        ("<THINK>Ada</Think>Bob", "Bob"),
        ("<thinking>Ada</thinking>Bob", "Bob"),
        ("[THINK]Ada[/THINK]Bob", "Bob"),
        ("<think>Ada <think>x</think> Ada</think>Bob", "Bob"),
        ("Bob<think>Ada", "Bob"),
        ("<think>Ada</think>Bob<think>Ada</think>", "Bob"),
        ("<think>Ada", ""),
    ],
)
def test_thinking_is_taken_out(text: str, said: str) -> None:
    assert without_thinking(text) == said
    assert read_answer(text, "context") == said


TAGS = ("<think>", "</think>", "<thinking>", "</thinking>", "[THINK]", "[/THINK]", "<answer>", "</answer>", "x", "\n")
pieces = st.lists(st.sampled_from(TAGS), max_size=12).map("".join)


@given(pieces)
def test_no_thinking_tag_is_left_and_nothing_is_made_up(text: str) -> None:
    said = without_thinking(text)
    assert not any(tag in said for tag in ("</think>", "</thinking>", "[/THINK]"))
    assert without_thinking(said) == said
    if not any(tag in text.lower() for tag in ("think>", "thinking>", "think]")):
        assert said == text


@given(pieces, st.sampled_from(("<think>", "<thinking>", "[THINK]")))
def test_a_name_that_is_only_thought_is_never_read(thought: str, opening: str) -> None:
    closing = opening.replace("<", "</").replace("[", "[/")
    thought = thought.replace("x", "Ada").replace(closing, "")
    assert "Ada" not in read_answer(f"{opening}{thought}Ada{closing}Bob", "context")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("unit", TAGS)
def test_thinking_is_taken_out_in_linear_time(unit: str) -> None:
    assert len(without_thinking(unit * 100_000)) <= len(unit) * 100_000


def test_a_verdict_after_thinking_is_read() -> None:
    assert read_verdict("<think>no, or is it?</think> Yes") is True
    assert read_verdict("<think>yes") is None


def listing(models: Answers) -> FrozenGenerator:
    http = httpx.AsyncClient(transport=httpx.MockTransport(models))
    return make_generator(http, "http://g/v1", GeneratorSettings(model="m", max_tokens=50, patience_s=0.0))


WINDOW = {"data": ["x", {"id": "m", "max_model_len": 1234}]}


@pytest.mark.parametrize("failure", [httpx.ConnectError("down"), 500, 401], ids=repr)
async def test_a_window_that_could_not_be_asked_is_asked_again(failure: Any) -> None:
    failures = [failure]

    def models(_: httpx.Request) -> httpx.Response:
        if not failures:
            return httpx.Response(200, json=WINDOW)
        if isinstance(failed := failures.pop(), Exception):
            raise failed
        return httpx.Response(failed)

    frozen = listing(models)
    with suppress(GeneratorError):
        assert await frozen._known_window() is None
    assert failures == []
    assert await frozen._known_window() == 1234


async def test_all_who_come_together_wait_for_one_answer_about_the_window() -> None:
    started, go, asked = asyncio.Event(), asyncio.Event(), 0

    async def models(_: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        started.set()
        await go.wait()
        return httpx.Response(200, json=WINDOW)

    http = httpx.AsyncClient(transport=httpx.MockTransport(models))
    frozen = make_generator(http, "http://g/v1", GeneratorSettings(model="m", patience_s=0.0))
    asking = [asyncio.create_task(frozen._known_window()) for _ in range(5)]
    await started.wait()
    asking[0].cancel()  # an attempt that is given up takes nothing from its neighbours
    go.set()
    windows = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(windows[0], asyncio.CancelledError) and windows[1:] == [1234] * 4
    assert asked <= 2
    assert await frozen._known_window() == 1234 and asked <= 2


async def test_a_prompt_that_is_not_counted_does_not_end_the_counting() -> None:
    counts = [httpx.Response(400, text="too long"), httpx.Response(200, json={"count": 7})]
    frozen = listing(lambda _: counts.pop(0))
    assert await frozen._tokens([{"role": "user", "content": "x" * 30}]) > 7
    assert await frozen._tokens([{"role": "user", "content": "x"}]) == 7
