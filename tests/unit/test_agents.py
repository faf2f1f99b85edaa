"""The turn loop over fakes: exact token prefixes, precedence, budgets, limits (spec §1.3-§1.5)."""

import re
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3_agent.agents.base import Limits, fit_passages, normalize_question
from s3_agent.agents.s3 import S3Agent, S3Protocol
from s3_agent.clients.fakes import FakePolicy, FakeRetriever, ToyTokenizer
from s3_agent.errors import ConfigError, PolicyError, RetrieverError
from s3_agent.tags import INVALID_HINT, initial_block, observation
from s3_agent.types import ActionKind, Episode, Passage, StopReason, Task

A, B, C, D = (Passage(id=name, title=name, text=f"text of {name}") for name in "ABCD")
TASK = Task(id="t", question="Which currency", golden_answers=("krone",), initial_passages=(A, B))
END = "<search_complete>True</search_complete><|im_end|>"
NOISE = "I think that Norway is nice.<|im_end|>"
LIMITS = Limits(topk=2, max_searches=2, max_context_tokens=20_000)


def search(query: str, *, mark: str = "") -> str:
    head = f"<important_info>{mark}</important_info>\n" if mark else ""
    return f'{head}<search_complete>False</search_complete>\n<query>{{"query": "{query}"}}</query>'


async def play(
    responses: Sequence[str], *, limits: Limits = LIMITS, retriever: FakeRetriever | None = None, task: Task = TASK
) -> tuple[Episode, FakePolicy, FakeRetriever]:
    policy, retriever = FakePolicy(responses), retriever or FakeRetriever(default=(C, D, A))
    episode = await S3Agent(limits=limits, prompt="compact").run(task, policy=policy, retriever=retriever)
    return episode, policy, retriever


def assert_exact_prefixes(policy: FakePolicy) -> None:
    calls = list(zip(policy.prompts, policy.responses, strict=True))
    for (prompt, response), (following, _) in pairwise(calls):
        assert following[: len(prompt) + len(response)] == prompt + response


async def test_search_mark_finish() -> None:
    episode, policy, retriever = await play(
        [search("norway", mark="[]"), f"<important_info>[2]</important_info>\n{END}"]
    )
    assert retriever.queries == [("norway", 2)]
    assert episode.stop_reason is StopReason.FINISHED
    assert episode.selected == (D,)
    assert [turn.passages for turn in episode.turns] == [(C, D), None]
    assert [turn.observation for turn in episode.turns] == [observation((C, D)), ""]
    assert episode.prompt == f"<question>\nWhich currency?\n</question>\n{initial_block((A, B))}"
    assert_exact_prefixes(policy)


async def test_the_policys_tokens_are_prompt_and_episode_text() -> None:
    episode, policy, _ = await play([search("x"), NOISE, END])
    whole = policy.prompts[-1] + policy.responses[-1]
    assert (
        policy.tokenizer.decode(whole)
        == f"<|im_start|>user\n{episode.prompt}<|im_end|>\n<|im_start|>assistant\n{episode.text}"
    )
    assert [turn.prompt_tokens for turn in episode.turns] == [len(prompt) for prompt in policy.prompts]
    assert [turn.response_tokens for turn in episode.turns] == [len(ids) for ids in policy.responses]
    assert_exact_prefixes(policy)


async def test_without_initial_passages_the_agent_searches_for_the_question() -> None:
    task = TASK.model_copy(update={"initial_passages": None})
    limits = LIMITS.model_copy(update={"initial_topk": 1})
    episode, _, retriever = await play([END], task=task, limits=limits)
    assert retriever.queries == [("Which currency?", 1)]
    assert episode.initial_passages == episode.selected == (C,)
    assert episode.searches == 0, "the first search is not the policy's"


async def test_the_budget_is_max_searches_and_a_final_turn_that_searches_nothing() -> None:
    episode, policy, retriever = await play([search("one"), search("two"), search("three", mark="[1]"), "never asked"])
    assert [query for query, _ in retriever.queries] == ["one", "two"]
    assert len(policy.prompts) == LIMITS.generations == 3
    assert episode.stop_reason is StopReason.FINAL_TURN_USED
    assert (episode.turns[-1].passages, episode.turns[-1].observation) == (None, "")
    action = episode.turns[-1].action
    assert action is not None and action.kind is ActionKind.SEARCH
    assert episode.selected == (C, A, B, D), "what the final turn marks counts"


async def test_finishing_in_the_final_turn_is_finishing() -> None:
    episode, *_ = await play([search("one"), search("two"), END])
    assert episode.stop_reason is StopReason.FINISHED


async def test_without_a_final_generation_the_last_search_ends_the_episode() -> None:
    limits = LIMITS.model_copy(update={"final_generation": False})
    episode, policy, retriever = await play([search("one"), search("two")], limits=limits)
    assert len(retriever.queries) == len(policy.prompts) == 2
    assert episode.stop_reason is StopReason.FINAL_TURN_USED


async def test_an_invalid_turn_gets_the_hint_and_costs_a_turn() -> None:
    episode, policy, retriever = await play([NOISE, '{"query": "after the hint"}</query>', NOISE])
    assert episode.turns[0].observation == INVALID_HINT
    assert episode.turns[0].passages is None
    assert retriever.queries == [("after the hint", 2)]
    assert episode.turns[-1].observation == ""
    assert len(policy.prompts) == LIMITS.generations
    assert_exact_prefixes(policy)


@pytest.mark.parametrize(
    ("response", "query"),
    [
        ("<query>raw text</query>", "raw text"),
        ('<query>{"query": ["a", "b"]}</query>', "a"),
        ("<query></query>", ""),
        ('<query>{"query": "\\ud800"}</query>', "?"),
    ],
)
async def test_every_query_body_is_searched(response: str, query: str) -> None:
    _, _, retriever = await play([response, END])
    assert retriever.queries == [(query, 2)]


async def test_a_finish_before_a_query_wins_and_text_after_a_query_is_not_generated() -> None:
    _, _, retriever = await play(["<search_complete>True</search_complete>" + search("x")])
    assert retriever.queries == []
    episode, _, retriever = await play([search("x") + END, END])
    assert retriever.queries == [("x", 2)]
    assert episode.turns[0].response == search("x")


async def test_a_search_that_finds_nothing_goes_on() -> None:
    episode, policy, _ = await play([search("x"), END], retriever=FakeRetriever())
    assert episode.turns[0].passages == ()
    assert episode.turns[0].observation == "\n\n<information></information>\n\n"
    assert_exact_prefixes(policy)


async def test_the_episode_ends_when_the_context_is_full() -> None:
    start = len(ToyTokenizer().chat(S3Protocol("compact").prompt("Which currency?", (A, B))))
    limits = LIMITS.model_copy(update={"max_context_tokens": start + len(search("x")) + 20})
    episode, policy, _ = await play([search("x"), END], limits=limits)
    assert episode.stop_reason is StopReason.CONTEXT_FULL
    assert len(policy.prompts) == len(episode.turns) == 1


async def test_the_last_generation_gets_only_the_room_that_is_left() -> None:
    start = len(ToyTokenizer().chat(S3Protocol("compact").prompt("Which currency?", (A, B))))
    limits = LIMITS.model_copy(update={"max_context_tokens": start + 5, "max_searches": 0})
    episode, policy, _ = await play([NOISE], limits=limits)
    assert len(policy.responses[0]) == 5
    assert episode.stop_reason is StopReason.FINAL_TURN_USED


async def test_a_prompt_that_does_not_fit_names_the_task_and_the_limits() -> None:
    with pytest.raises(ConfigError, match="task t has") as caught:
        await play([END], limits=LIMITS.model_copy(update={"max_context_tokens": 64}))
    assert "initial_topk" in caught.value.remedy


async def test_failures_of_services_reach_the_caller() -> None:
    with pytest.raises(RetrieverError):
        await play([search("x")], retriever=FakeRetriever(failures=1))
    with pytest.raises(PolicyError):
        await play([])


def shown_tokens(passages: Sequence[Passage]) -> int:
    return len(ToyTokenizer().encode(observation(passages)))


texts = st.lists(st.text(alphabet="ab漢 \n<", max_size=60), max_size=5)


@given(texts, st.integers(31, 200))
def test_a_cut_observation_fits_keeps_its_tags_and_shows_a_prefix(documents: list[str], limit: int) -> None:
    passages = [Passage(id=str(number), title="t", text=text) for number, text in enumerate(documents)]
    fitted = fit_passages(passages, S3Protocol(), ToyTokenizer(), max_tokens=limit)
    assert shown_tokens(fitted) <= limit
    assert re.findall(r"</?information>", observation(fitted)) == ["<information>", "</information>"]
    assert [passage.id for passage in fitted] == [passage.id for passage in passages[: len(fitted)]]
    for before, after in zip(passages, fitted, strict=False):
        assert before.text.strip().startswith(after.text.strip())
    if shown_tokens(passages) <= limit:
        assert list(fitted) == passages


async def test_ids_of_cut_passages_can_not_be_marked() -> None:
    long = Passage(id="L", title="L", text="word " * 100)
    limits = LIMITS.model_copy(update={"max_observation_tokens": 120})
    end = f"<important_info>[1, 2]</important_info>\n{END}"
    episode, policy, _ = await play(
        [search("x", mark="[]"), end], limits=limits, retriever=FakeRetriever(default=(long, C))
    )
    (shown,) = episode.turns[0].passages or [None]
    assert shown is not None
    assert shown.id == "L" and len(shown.text) < len(long.text)
    assert episode.turns[0].observation.endswith("word</information>\n\n")
    assert episode.selected == (shown,)
    assert_exact_prefixes(policy)


def test_text_without_spaces_is_cut_and_not_dropped() -> None:
    [shown] = fit_passages([Passage(id="1", title="t", text="漢" * 300)], S3Protocol(), ToyTokenizer(), max_tokens=200)
    assert 0 < len(shown.text) < 300


@pytest.mark.parametrize(("question", "normal"), [(" a ", "a?"), ("a?", "a?"), ("a ? ", "a ?"), ("a.", "a.?")])
def test_normalize_question(question: str, normal: str) -> None:
    assert normalize_question(question) == normal


def test_s3s_defaults_are_the_published_ones() -> None:
    limits = Limits()
    assert (limits.initial_topk, limits.topk, limits.max_searches, limits.generations) == (3, 8, 4, 5)
    assert (limits.max_new_tokens, limits.max_observation_tokens, limits.max_context_tokens) == (500, 1400, 8000)


def test_the_instruct_prompt_ends_with_the_compact_one() -> None:
    compact = S3Protocol("compact").prompt("q?", [A])
    instruct = S3Protocol("instruct").prompt("q?", [A])
    assert instruct.endswith(
        "Now, start the loop with the following question and initial searched results:\n\n" + compact
    )
