"""The chat mode of the policy client: same agents, messages instead of token ids."""

import json
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from s3_agent.agents.base import Limits
from s3_agent.agents.s3 import S3Agent
from s3_agent.agents.search_r1 import SearchR1Agent
from s3_agent.clients.chat_policy import ChatPolicy, close_stop
from s3_agent.errors import PolicyError
from s3_agent.testing.fakes import FakeRetriever
from s3_agent.types import Passage, StopReason, Task

TASK = Task(id="t", question="Which", golden_answers=("a",), initial_passages=())
FOUND = (Passage(id="1", title="T", text="found"),)
STOPS = ("</search>", "</answer>")


def choice(text: Any, **rest: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text}, "finish_reason": "stop", **rest}


def server(choices: Sequence[Any], sent: list[Any], *, usage: dict[str, int] | None = None) -> httpx.AsyncClient:
    left = iter(choices)

    def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":  # a hosted model that says nothing about itself
            return httpx.Response(404)
        sent.append(json.loads(request.content))
        answer = next(left)
        if isinstance(answer, httpx.Response):
            return answer
        return httpx.Response(200, json={"choices": [answer], "usage": usage})

    return httpx.AsyncClient(transport=httpx.MockTransport(handle))


@pytest.mark.parametrize(
    ("before", "text", "closed"),
    [
        ("", "<search>a", "<search>a</search>"),
        ("", "<search>a</search> more", "<search>a</search>"),
        ("", "<answer>a</answer><search>", "<answer>a</answer>"),
        ("", "<search>a <answer>b", "<search>a <answer>b</answer>"),
        ("", "no tag", "no tag"),
        ("write <search>\n", "a", "a</search>"),
        ("<search>x</search>", "a", "a"),
    ],
)
def test_a_stop_that_the_server_took_away_is_put_back(before: str, text: str, closed: str) -> None:
    assert close_stop(before, text, STOPS) == closed


async def test_the_s3_agent_over_chat_messages() -> None:
    sent: list[Any] = []
    answers = [choice('<query>{"query": "x"}'), choice("<search_complete>True</search_complete>")]
    policy = ChatPolicy(server(answers, sent), "http://p/v1", model="m", temperature=0.6, top_p=0.95)
    retriever = FakeRetriever(default=FOUND)
    episode = await S3Agent(prompt="compact").run(TASK, policy=policy, retriever=retriever)
    assert retriever.queries == [("x", 8)]
    assert episode.stop_reason is StopReason.FINISHED
    assert episode.selected == FOUND
    assert [message["role"] for message in sent[1]["messages"]] == ["user", "assistant", "user"]
    assert sent[1]["messages"][1]["content"] == '<query>{"query": "x"}</query>'
    assert sent[1]["messages"][2]["content"] == "<information>Doc 1(Title: T) found</information>"
    assert sent[0] | {"messages": None} == {
        **{"model": "m", "temperature": 0.6, "top_p": 0.95, "messages": None},
        **{"max_tokens": 500, "stop": ["</query>"]},
    }


async def test_vllm_says_whether_a_stop_was_met() -> None:
    sent: list[Any] = []
    answers = [choice("<answer>open", stop_reason=None), choice("<answer>a", stop_reason="</answer>")]
    policy = ChatPolicy(server(answers, sent), "http://p/v1", model="m")
    episode = await SearchR1Agent().run(TASK, policy=policy, retriever=FakeRetriever())
    assert [turn.response for turn in episode.turns] == ["<answer>open", "<answer>a</answer>"]
    assert episode.answer == "a"


async def test_fields_can_be_taken_out_and_added() -> None:
    sent: list[Any] = []
    body = {"temperature": None, "top_p": None, "stop": None, "max_tokens": None, "max_completion_tokens": 9}
    policy = ChatPolicy(server([choice("<answer>a</answer>")], sent), "http://p/v1", model="m", body=body)
    await SearchR1Agent().run(TASK, policy=policy, retriever=FakeRetriever())
    assert sent[0].keys() == {"model", "messages", "max_completion_tokens"}


async def test_the_servers_own_counts_fill_the_context() -> None:
    usage = {"completion_tokens": 7, "total_tokens": 96}
    policy = ChatPolicy(server([choice("x")] * 3, [], usage=usage), "http://p/v1", model="m")
    limits = Limits(initial_topk=0, max_context_tokens=100)
    episode = await S3Agent(prompt="compact", limits=limits).run(TASK, policy=policy, retriever=FakeRetriever())
    assert episode.stop_reason is StopReason.CONTEXT_FULL
    assert [turn.response_tokens for turn in episode.turns] == [7]


@pytest.mark.parametrize(
    "answer",
    [{}, {"message": {}}, choice(["x"]), choice("x", finish_reason="content_filter")],
    ids=["nothing", "no content", "parts", "filtered"],
)
async def test_no_usable_response_is_a_policy_error(answer: Any) -> None:
    policy = ChatPolicy(server([answer], []), "http://p/v1", model="m")
    with pytest.raises(PolicyError):
        await SearchR1Agent().run(TASK, policy=policy, retriever=FakeRetriever())


async def test_an_overloaded_server_is_waited_for() -> None:
    busy = httpx.Response(429, headers={"Retry-After": "0"})
    policy = ChatPolicy(server([busy, choice("<answer>a</answer>")], []), "http://p/v1", model="m")
    episode = await SearchR1Agent().run(TASK, policy=policy, retriever=FakeRetriever())
    assert episode.answer == "a"
