"""The window of a policy's server bounds an episode, in token ids and in chat messages: no request goes beyond it."""

import json
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3_agent.agents.base import Agent, Limits
from s3_agent.agents.ircot import IrcotAgent
from s3_agent.agents.s3 import S3Agent
from s3_agent.agents.search_r1 import SearchR1Agent
from s3_agent.clients.chat_policy import ChatPolicy
from s3_agent.clients.model_server import MOST_STOPS, NEUTRAL, ModelServer, cut_at
from s3_agent.clients.policy import Completion, CompletionsPolicy, Policy
from s3_agent.errors import ConfigError, ContextFull, PolicyError
from s3_agent.recipe import load_recipe
from s3_agent.testing.fakes import FakePolicy, FakeRetriever, ToyTokenizer
from s3_agent.types import Episode, Passage, StopReason, Task

TASK = Task(id="t", question="Which", golden_answers=("a",), initial_passages=())
SEARCHES = {"s3": '<query>{"query": "x"}</query>', "search_r1": "<search>x</search>", "chat": "<search>x</search>"}
GREATEST = 3000

windows = st.integers(64, GREATEST)
texts = st.lists(st.text(alphabet="ab漢é \n<>/0123456789", max_size=200), max_size=4)


def agent_of(name: str, limits: Limits) -> Agent:
    if name == "s3":
        return S3Agent(limits=limits.model_copy(update={"initial_topk": 0}), prompt="compact")
    return SearchR1Agent(limits=limits, agl_chat=name == "chat", prompt="compact")


class WindowedFakePolicy(FakePolicy):
    """A fake whose server would refuse what goes beyond its window."""

    def __init__(self, said: Sequence[str], window: int) -> None:
        super().__init__(said)
        self._window = window

    async def window(self) -> int:
        return self._window

    async def complete(self, prompt_ids: Sequence[int], *, max_tokens: int, stop: Sequence[str]) -> Completion:
        assert max_tokens > 0 and len(prompt_ids) + max_tokens <= self._window, "the server answers 400"
        return await super().complete(prompt_ids, max_tokens=max_tokens, stop=stop)


class FakeWindowedServer:
    """An OpenAI-compatible server with a token for `bytes_a_token` bytes, which refuses what its window can not hold.

    `counts`: whether it has vLLM's `/tokenize`; `told`: whether it reports its window.
    """

    def __init__(
        self, said: Sequence[str], window: int, *, counts: bool = True, told: bool = True, bytes_a_token: int = 1
    ) -> None:
        self.window, self.refused = window, 0
        self.asked: list[dict[str, Any]] = []
        self._left = iter(said)
        self._counts, self._told, self._bytes = counts, told, bytes_a_token

    def _size(self, body: dict[str, Any]) -> int:
        contents = [message["content"] for message in body["messages"]]
        return 40 + sum(-(-len(text.encode()) // self._bytes) + 10 for text in contents)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            entry = {"id": "m", "owned_by": "vllm", **({"max_model_len": self.window} if self._told else {})}
            return httpx.Response(200, json={"data": [entry]})
        body = json.loads(request.content)
        if request.url.path == "/tokenize":
            return httpx.Response(200, json={"count": self._size(body)}) if self._counts else httpx.Response(404)
        self.asked.append(body)
        read, most = self._size(body), body["max_tokens"]
        if read + most > self.window:
            self.refused += 1
            return httpx.Response(400, text="the maximum context length")
        text = next(self._left)
        written = -(-len(text.encode()) // self._bytes)
        reason = "stop" if written <= most else "length"
        text = text.encode()[: most * self._bytes].decode(errors="ignore")
        written = min(written, most)
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        choice = {"message": {"content": text}, "finish_reason": reason, "stop_reason": None}
        return httpx.Response(200, json={"choices": [choice], "usage": usage})

    def policy(self, **settings: Any) -> ChatPolicy:
        http = httpx.AsyncClient(transport=httpx.MockTransport(self))
        return ChatPolicy(http, "http://p/v1", model="m", patience_s=0.0, **settings)


async def episode_of(
    name: str, policy: Policy, said: Sequence[str], documents: Sequence[str], **limits: int
) -> Episode | None:
    """The episode; None where the first prompt does not fit."""
    passages = [Passage(id=str(number), title="t", text=text) for number, text in enumerate(documents)]
    bounds = Limits(initial_topk=0, topk=4, max_searches=3, max_context_tokens=GREATEST, **limits)  # pyright: ignore[reportArgumentType]
    try:
        return await agent_of(name, bounds).run(TASK, policy=policy, retriever=FakeRetriever(default=passages))
    except ConfigError as refused:
        assert "the first prompt of task t is too long" in refused.message
        return None


@given(st.sampled_from([*SEARCHES]), windows, st.integers(1, 600), st.lists(st.text(max_size=80), max_size=4), texts)
async def test_in_token_ids_no_call_goes_beyond_the_window(
    name: str, window: int, new_tokens: int, said: list[str], documents: list[str]
) -> None:
    said = [*said, *[SEARCHES[name]] * 4]
    policy = WindowedFakePolicy([text or " " for text in said], window)
    episode = await episode_of(name, policy, said, documents, max_new_tokens=new_tokens)
    if episode is None:
        assert len(policy.tokenizer.encode(f"{TASK.question}?")) + 20 < window or policy.prompts == []
        return
    for (prompt, response), following in zip(
        zip(policy.prompts, policy.responses, strict=True), policy.prompts[1:], strict=False
    ):
        assert following[: len(prompt) + len(response)] == prompt + response
    assert len(policy.prompts[-1]) + len(policy.responses[-1]) <= window
    if len(policy.prompts) < 4 and not any(turn.action and turn.action.answer for turn in episode.turns):
        assert episode.stop_reason in (StopReason.CONTEXT_FULL, StopReason.FINISHED, StopReason.INVALID)


@given(
    st.sampled_from([*SEARCHES]),
    windows,
    st.integers(1, 600),
    st.lists(st.text(alphabet="ab漢 ", max_size=80), max_size=4),
    texts,
    st.booleans(),
)
async def test_in_chat_messages_no_call_goes_beyond_the_window(
    name: str, window: int, new_tokens: int, said: list[str], documents: list[str], told: bool
) -> None:
    said = [*said, *[SEARCHES[name]] * 4]
    server = FakeWindowedServer([text or " " for text in said], window, told=told)
    policy = server.policy(context_tokens=None if told else window)
    episode = await episode_of(name, policy, said, documents, max_new_tokens=new_tokens)
    assert server.refused == 0
    assert episode is None or episode.turns


@given(windows, st.integers(1, 600), st.lists(st.text(alphabet="ab c", max_size=80), max_size=4), texts)
async def test_a_server_that_counts_nothing_is_not_asked_for_more_than_an_estimate_leaves(
    window: int, new_tokens: int, said: list[str], documents: list[str]
) -> None:
    said = [*said, *[SEARCHES["search_r1"]] * 4]
    server = FakeWindowedServer(said, window, counts=False, bytes_a_token=4)
    await episode_of("search_r1", server.policy(), said, documents, max_new_tokens=new_tokens)
    assert server.refused == 0


async def test_an_episode_that_fills_the_window_ends_as_one_that_fills_its_limit() -> None:
    said = [SEARCHES["s3"]] * 5
    documents = ["word " * 40] * 4
    free, bound = FakePolicy(said), WindowedFakePolicy(said, 700)
    whole = await episode_of("s3", free, said, documents, max_new_tokens=100, max_observation_tokens=400)
    cut = await episode_of("s3", bound, said, documents, max_new_tokens=100, max_observation_tokens=400)
    assert whole is not None and whole.stop_reason is StopReason.FINAL_TURN_USED
    assert cut is not None and cut.stop_reason is StopReason.CONTEXT_FULL
    assert 0 < len(cut.turns) < len(whole.turns)
    *before, last = [turn.response for turn in cut.turns]
    expected = [turn.response for turn in whole.turns]
    assert before == expected[: len(before)] and expected[len(before)].startswith(last)


async def test_a_first_prompt_that_the_window_can_not_hold_is_told_of() -> None:
    with pytest.raises(ConfigError, match="the context holds 64") as caught:
        await agent_of("search_r1", Limits(initial_topk=0)).run(
            TASK.model_copy(update={"question": "who " * 40}),
            policy=WindowedFakePolicy([], 64),
            retriever=FakeRetriever(),
        )
    assert "the policy server's window" in caught.value.remedy


async def test_first_passages_are_cut_and_not_the_question_lost() -> None:
    passages = tuple(Passage(id=str(number), title="t", text="word " * 60) for number in range(3))
    task = TASK.model_copy(update={"initial_passages": passages})
    limits = Limits(initial_topk=3, max_searches=1, max_new_tokens=100)
    finish = "<important_info>[1]</important_info><search_complete>True</search_complete>"
    for window, shown in ((2000, 3), (700, 2), (400, 1)):
        policy = WindowedFakePolicy([finish], window)
        episode = await S3Agent(limits=limits, prompt="compact").run(task, policy=policy, retriever=FakeRetriever())
        assert len(episode.initial_passages) == shown, "what is selected later is what was shown"
        assert episode.stop_reason is StopReason.FINISHED and episode.selected == episode.initial_passages[:1]
        assert all(passage.text in episode.prompt for passage in episode.initial_passages)
        assert episode.initial_passages[:-1] == passages[: shown - 1], "only the last one is shortened"
        assert shown == 3 or len(policy.prompts[0]) <= window - 100, "a response has room"


async def test_a_conversation_without_room_says_so_to_an_agent_of_ones_own() -> None:
    conversation = WindowedFakePolicy(["abc"], 40).converse("x" * 60)
    with pytest.raises(ContextFull) as caught:
        await conversation.generate(max_tokens=5, stop=())
    assert caught.value.status == 413, "the same prompt would not fit in another attempt either"


async def test_a_prompted_agent_ends_where_its_growing_prompt_fills_the_window() -> None:
    server = FakeWindowedServer(["a thought <search_complete>No</search_complete>"] * 9, 2200)
    agent = IrcotAgent(limits=Limits(initial_topk=0, topk=1, max_searches=9, max_new_tokens=50))
    retriever = FakeRetriever(default=[Passage(id="1", title="t", text="w " * 200)])
    episode = await agent.run(TASK, policy=server.policy(), retriever=retriever)
    assert server.refused == 0
    assert episode.stop_reason is StopReason.CONTEXT_FULL and 0 < len(episode.turns) < 9


@pytest.mark.parametrize(
    ("given_", "told", "known"), [(None, 500, 500), (300, 500, 300), (700, 500, 500), (300, None, 300)]
)
async def test_the_smaller_of_two_windows_holds(given_: int | None, told: int | None, known: int) -> None:
    entry = {"id": "m", **({"max_model_len": told} if told else {})}
    http = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(200, json={"data": [entry]})))
    common: dict[str, Any] = {"model": "m", "context_tokens": given_}
    assert await ChatPolicy(http, "http://p/v1", **common).window() == known
    assert await CompletionsPolicy(http, "http://p/v1", ToyTokenizer(), asks_window=True, **common).window() == known
    gateway = CompletionsPolicy(http, "http://p/v1", ToyTokenizer(), **common)
    assert await gateway.window() == given_, "a gateway is not asked: it answers 405 for every rollout"


def test_the_window_of_the_server_that_trains_is_the_trainers() -> None:
    recipe = load_recipe("cpu")
    longest = recipe.trainer.prompt_tokens + recipe.trainer.response_tokens
    assert recipe.trained_window == longest >= recipe.agent.limits.max_context_tokens
    shorter = load_recipe("cpu", ["trainer.verl.actor_rollout_ref.rollout.max_model_len=333"])
    assert shorter.trained_window == 333
    assert load_recipe("cpu", ["policy.context_tokens=222"]).trained_window == 222


# What is sent: sampling values and stop strings


async def sent_to(
    entry: dict[str, Any], *, body: dict[str, Any] | None = None, stop: Sequence[str] = ()
) -> dict[str, Any]:
    """What a chat policy sends to a server with this entry on `/models`."""
    sent: list[dict[str, Any]] = []

    def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"data": [entry]})
        sent.append(json.loads(request.content))
        return httpx.Response(200, json={"choices": [{"message": {"content": "x"}}]})

    http = httpx.AsyncClient(transport=httpx.MockTransport(handle))
    conversation = ChatPolicy(http, "http://p/v1", model="m", body=body).converse("hello")
    await conversation.generate(max_tokens=9, stop=stop)
    return sent[0]


async def test_every_sampling_value_goes_to_vllm_and_none_that_a_strict_server_refuses_to_others() -> None:
    plain = {"model", "messages", "temperature", "top_p", "max_tokens", "stop"}
    told = await sent_to({"id": "m", "owned_by": "vllm"})
    assert told.keys() == plain | NEUTRAL.keys() and {name: told[name] for name in NEUTRAL} == NEUTRAL
    for other in ({"id": "m", "owned_by": "openai"}, {"id": "m"}, {"id": "another", "owned_by": "vllm"}):
        assert (await sent_to(other)).keys() == plain
    spoken = await sent_to({"id": "m"}, body={"repetition_penalty": 1.0})
    assert spoken.keys() == plain | {"repetition_penalty"}, "the recipe may say that a server takes it"
    taken = await sent_to({"id": "m", "owned_by": "vllm"}, body={"min_p": None, "top_k": 5})
    assert "min_p" not in taken and taken["top_k"] == 5


@given(st.text(alphabet="abcd", max_size=30), st.lists(st.text(alphabet="abcd", min_size=1, max_size=3), max_size=7))
async def test_a_response_ends_with_the_first_stop_however_many_there_are(written: str, stop: list[str]) -> None:
    """The server knows the first four; the fifth and later ones are cut by the client, at the end of a token."""
    told = cut_at(written, stop[:MOST_STOPS])
    ids = list(told.encode())
    sent: list[dict[str, Any]] = []

    def handle(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        return httpx.Response(200, json={"choices": [{"token_ids": ids or [97], "finish_reason": "stop"}]})

    http = httpx.AsyncClient(transport=httpx.MockTransport(handle))
    conversation = CompletionsPolicy(http, "http://p/v1", ToyTokenizer()).converse("q")
    reply = await conversation.generate(max_tokens=99, stop=stop)
    assert sent[0]["stop"] == stop[:MOST_STOPS]
    assert reply.text == cut_at(told or "a", stop)
    assert conversation.used == len(ToyTokenizer().chat("q")) + reply.tokens


async def test_chat_messages_are_cut_at_a_fifth_stop_too() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(404)
        assert json.loads(request.content)["stop"] == ["a", "b", "c", "d"]
        choice = {"message": {"content": "x e f"}, "finish_reason": "length", "text": "x e f"}
        return httpx.Response(200, json={"choices": [choice]})

    http = httpx.AsyncClient(transport=httpx.MockTransport(handle))
    policy = ChatPolicy(http, "http://p/v1", model="m")
    for template in (True, False):
        reply = await policy.converse("q", template=template).generate(max_tokens=9, stop=tuple("abcdef"))
        assert reply.text == "x e"


@given(st.text(alphabet="ab<>", max_size=30), st.lists(st.text(alphabet="ab<>", min_size=1, max_size=4), max_size=5))
def test_a_text_is_cut_where_the_first_stop_ends(text: str, stop: list[str]) -> None:
    kept = cut_at(text, stop)
    assert text.startswith(kept)
    if kept == text:
        assert all(mark not in text[:-1] for mark in stop)
    else:
        assert any(kept.endswith(mark) for mark in stop)
        assert all(mark not in kept[:-1] for mark in stop)


# What a server reports


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_a_server_that_knows_no_such_path_is_asked_once(status: int) -> None:
    asked: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return httpx.Response(status)

    http = httpx.AsyncClient(transport=httpx.MockTransport(handle))
    server = ModelServer(http, "http://p/v1", "m", error=PolicyError)
    for _ in range(3):
        assert (await server.window(), await server.sampling(), await server.count({"prompt": "x"})) == (None, {}, None)
    assert sorted(asked) == ["/tokenize", "/v1/models"]


async def test_a_server_out_of_reach_is_not_taken_for_one_that_reports_nothing() -> None:
    answers = [httpx.Response(500), httpx.Response(200, json={"data": [{"id": "m", "max_model_len": 7}]})]
    http = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: answers.pop(0)))
    server = ModelServer(http, "http://p/v1", "m", error=PolicyError, patience_s=0.0)
    with pytest.raises(PolicyError):
        await server.sampling()
    assert await server.window() == 7


@pytest.mark.parametrize("window", [0, -1, "8192", None, True])
async def test_a_window_that_is_no_number_of_tokens_is_none(window: Any) -> None:
    entry = {"id": "m", "max_model_len": window}
    http = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(200, json={"data": [entry]})))
    assert await ModelServer(http, "http://p/v1", "m", error=PolicyError).window() is None
