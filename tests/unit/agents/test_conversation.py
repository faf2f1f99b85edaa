"""Conversations in token ids: what was sampled stays, also past a stop, and text is what the ids decode to."""

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from s3_agent.agents.base import Limits
from s3_agent.agents.s3 import S3Agent
from s3_agent.agents.search_r1 import SearchR1Agent
from s3_agent.clients.tokenizer import load_tokenizer
from s3_agent.embedded import NANO_POLICY
from s3_agent.testing.fakes import FakePolicy, FakeRetriever, ToyTokenizer
from s3_agent.types import Episode, Passage, Task

PIECES = (">\n", "y>", "</", ">\n\n", "h> ", "ation>\n")
LIMITS = Limits(topk=2, max_searches=3, max_context_tokens=6000, max_observation_tokens=300, max_new_tokens=120)
TASK = Task(id="t", question="Which", golden_answers=("a",), initial_passages=())
PARTS = (
    *('<query>{"query": "x"}</query>', "<query>y</query>\n\nand more", "<search>z</search>\nand more"),
    *("<important_info>[1]</important_info>\n", "<search_complete>True</search_complete>", "<answer>a</answer>\n"),
    *("<|im_end|>", "</query>", "</search> ", "<information>", "é漢🜁", "\n", " "),
)
responses = st.lists(st.lists(st.sampled_from(PARTS), max_size=4).map("".join), min_size=4, max_size=4)
texts = st.lists(st.text(alphabet="ab漢 \n<>/|im_end", max_size=80), max_size=3)


async def play(agent: str, said: Sequence[str], documents: Sequence[str]) -> tuple[Episode, FakePolicy]:
    passages = [Passage(id=str(number), title="t", text=text) for number, text in enumerate(documents)]
    policy = FakePolicy([text or " " for text in said], ToyTokenizer(PIECES))
    made = S3Agent(limits=LIMITS) if agent == "s3" else SearchR1Agent(limits=LIMITS)
    return await made.run(TASK, policy=policy, retriever=FakeRetriever(default=passages)), policy


@given(st.sampled_from(["s3", "search_r1"]), responses, texts)
async def test_the_row_is_the_episodes_text_whatever_is_sampled_or_found(
    agent: str, said: list[str], documents: list[str]
) -> None:
    episode, policy = await play(agent, said, documents)
    calls = list(zip(policy.prompts, policy.responses, strict=True))
    for (prompt, response), (following, _) in pairwise(calls):
        assert following[: len(prompt) + len(response)] == prompt + response
    row = policy.prompts[-1][len(policy.prompts[0]) :] + policy.responses[-1]
    assert policy.tokenizer.decode(row) == episode.text
    assert [turn.response_tokens for turn in episode.turns] == [len(ids) for ids in policy.responses]
    assert len(policy.prompts[-1]) + len(policy.responses[-1]) <= LIMITS.max_context_tokens


async def test_text_past_the_stop_belongs_to_the_response_and_is_not_read() -> None:
    policy = FakePolicy(["<query>q</query>\nnever sampled", "</search_complete>"], ToyTokenizer([">\n"]))
    retriever = FakeRetriever()
    episode = await S3Agent(limits=LIMITS.model_copy(update={"max_searches": 1})).run(
        TASK, policy=policy, retriever=retriever
    )
    assert episode.turns[0].response == "<query>q</query>\n"
    assert retriever.queries == [("q", 2)]


async def test_the_users_turn_follows_the_template_and_an_end_of_turn_is_not_written_twice() -> None:
    for said, before in (("open", "<|im_end|>"), ("closed<|im_end|>", "")):
        conversation = FakePolicy([said]).converse("hello")
        await conversation.generate(max_tokens=99, stop=())
        read = conversation.observe("found", role="user")
        assert read == f"{before}\n<|im_start|>user\nfound<|im_end|>\n<|im_start|>assistant\n"


def test_a_real_template_gives_the_same_turns() -> None:
    tokenizer = load_tokenizer(str(NANO_POLICY))
    toy = ToyTokenizer()
    assert tokenizer.next_user_turn("found\n") == toy.next_user_turn("found\n")
    assert tokenizer.decode(tokenizer.chat("hello")) == toy.decode(toy.chat("hello"))
    assert {"<|im_start|>", "<|im_end|>"} <= tokenizer.control


def half(text: str, size: int) -> bytes:
    return text.encode()[:size]


async def test_half_a_character_stays_half() -> None:
    policy = FakePolicy(["漢</query>", "x"], ToyTokenizer())
    limits = LIMITS.model_copy(update={"max_new_tokens": 2, "max_searches": 1})
    episode = await S3Agent(limits=limits).run(TASK, policy=policy, retriever=FakeRetriever())
    assert policy.responses[0] == tuple(half("漢", 2))
    assert episode.turns[0].response == "\N{REPLACEMENT CHARACTER}"
    row = policy.prompts[-1][len(policy.prompts[0]) :] + policy.responses[-1]
    assert policy.tokenizer.decode(row) == episode.text
