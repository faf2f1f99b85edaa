"""Search-R1 on the same loop: its tags, limits, answers and hints, and Agent Lightning's chat variant."""

import re
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3_agent.agents.search_r1 import (
    LIMITS,
    SearchR1Agent,
    SearchR1Protocol,
    cut_after_action,
    own_answer,
    parse,
)
from s3_agent.agents.settings import AgentChoice
from s3_agent.errors import ConfigError
from s3_agent.rewards.registry import REWARDS, Scored
from s3_agent.rewards.search_r1 import final_answer, scored_responses, scored_text
from s3_agent.tags import observation
from s3_agent.testing.fakes import FakePolicy, FakeRetriever
from s3_agent.types import ActionKind, Episode, Passage, RewardResult, StopReason, Task

A, B, C = (Passage(id=name, title=f'"{name}"', text=f"text of {name}") for name in "ABC")
TASK = Task(id="t", question="Which currency", golden_answers=("krone",), initial_passages=(A,))
SEARCH, ANSWER, INVALID = ActionKind.SEARCH, ActionKind.ANSWER, ActionKind.INVALID
PIECES = ("<search>", "</search>", "<answer>", "</answer>", "<think>", "x", " ", "\n", "<", "</query>")
hostile = st.lists(st.sampled_from(PIECES), max_size=20).map("".join)


async def play(
    responses: Sequence[str], *, retriever: FakeRetriever | None = None, agent: SearchR1Agent | None = None
) -> tuple[Episode, FakePolicy, FakeRetriever]:
    policy, retriever = FakePolicy(responses), retriever or FakeRetriever(default=(A, B, C, A))
    agent = agent or SearchR1Agent(limits=LIMITS.model_copy(update={"max_context_tokens": 30_000}), prompt="compact")
    return await agent.run(TASK, policy=policy, retriever=retriever), policy, retriever


@pytest.mark.parametrize(
    ("response", "kind", "body"),
    [
        ("<think>x</think><search> the krone </search>", SEARCH, "the krone"),
        ("<answer> Oslo </answer>", ANSWER, "Oslo"),
        ("<answer>Oslo</answer> and <search>more</search>", ANSWER, "Oslo"),
        ("<search>more</search> and <answer>Oslo</answer>", SEARCH, "more"),
        ("<search>open <answer>Oslo</answer>", ANSWER, "Oslo"),
        ("<search>a <answer>b</answer> c</search>", SEARCH, "a <answer>b</answer> c"),
        ("<answer>a <search>b</search>", SEARCH, "b"),
        ("</answer> <answer>late</answer>", INVALID, None),
        ("<search></search>", SEARCH, ""),
        ("<answer></answer>", ANSWER, ""),
        ("<query>x</query>", INVALID, None),
        ("", INVALID, None),
    ],
)
def test_action_table(response: str, kind: ActionKind, body: str | None) -> None:
    action = parse(response)
    assert (action.kind, action.query if kind is SEARCH else action.answer) == (kind, body)


@given(hostile)
def test_actions_agree_with_the_regular_expression_of_the_original(text: str) -> None:
    kept = cut_after_action(text)
    assert text.startswith(kept)
    found = re.search(r"<(search|answer)>(.*?)</\1>", kept, re.DOTALL)
    action = parse(text)
    expected = {"search": SEARCH, "answer": ANSWER}[found[1]] if found else INVALID
    assert action.kind is expected
    assert (action.query or action.answer or "") == (found[2].strip() if found else "")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("unit", ["<search>", "</search>", "<answer>x", "</answer>", "<search></answer>"])
def test_reading_is_linear(unit: str) -> None:
    assert parse(unit * 100_000).kind in (SEARCH, INVALID)


async def test_search_then_answer() -> None:
    episode, policy, retriever = await play(["<search>a</search>", "<answer>krone</answer>"])
    assert retriever.queries == [("a", 3)]
    assert episode.prompt == "Question: Which currency?\n"
    assert (episode.stop_reason, episode.answer) == (StopReason.ANSWERED, "krone")
    assert episode.turns[0].observation == observation((A, B, C))
    assert episode.initial_passages == (), "the prompt shows none"
    assert episode.selected == (A, B, C)
    for (before, written), (after, _) in pairwise(zip(policy.prompts, policy.responses, strict=True)):
        assert after[: len(before) + len(written)] == before + written


async def test_budget_is_four_searches_and_a_final_turn() -> None:
    episode, policy, retriever = await play(["<search>again</search>"] * 5)
    assert (len(policy.prompts), len(retriever.queries)) == (5, 4)
    assert (episode.stop_reason, episode.answer) == (StopReason.FINAL_TURN_USED, None)


async def test_an_invalid_action_gets_the_hint_that_checkpoints_have_seen() -> None:
    episode, *_ = await play(["Let me see.", "<answer>krone</answer>"])
    assert episode.turns[0].observation == (
        "\nMy previous action is invalid. If I want to search, I should put the query between <search> and "
        "</search>. If I want to give the final answer, I should put the answer between <answer> and </answer>. "
        "Let me try again.\n"
    )
    assert episode.answer == "krone"


async def test_text_after_the_action_is_not_generated() -> None:
    episode, *_ = await play(["<answer>krone</answer><search>more</search>"])
    assert episode.text == "<answer>krone</answer>"


async def test_agents_lightnings_chat_variant() -> None:
    agent = SearchR1Agent(prompt="compact", agl_chat=True)
    episode, policy, _ = await play(["<search>a</search>", "no action"], agent=agent)
    assert episode.agent == "search_r1_agl_chat"
    assert (episode.stop_reason, episode.answer) == (StopReason.INVALID, None)
    said = observation((A, B, C))
    assert episode.turns[0].observation == f"<|im_end|>\n<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n"
    whole = policy.tokenizer.decode(policy.prompts[-1] + policy.responses[-1])
    assert whole.endswith(episode.text)


def test_the_prompt_ends_with_the_question_and_data_brings_its_own_words() -> None:
    assert SearchR1Protocol("instruct").message(TASK, ()).endswith(" Question: Which currency?\n")
    task = TASK.model_copy(update={"prompt": "Think. Question: Which currency?\n"})
    assert SearchR1Protocol("data").message(task, ()) == "Think. Question: Which currency?\n"
    with pytest.raises(ConfigError, match="task t does not hold"):
        SearchR1Protocol("data").message(TASK, ())


def test_limits_and_selection_are_the_named_agents_own() -> None:
    chosen = AgentChoice.model_validate({"name": "search_r1", "limits": {"topk": 5}})
    assert chosen.limits == LIMITS.model_copy(update={"topk": 5})
    assert (LIMITS.topk, LIMITS.max_observation_tokens, LIMITS.max_context_tokens, LIMITS.generations) == (
        3,
        500,
        4096,
        5,
    )
    assert chosen.selection == "chronological"
    assert AgentChoice().limits.topk == 8
    with pytest.raises(ValueError, match="no prompt `bm25`"):
        AgentChoice.model_validate({"name": "search_r1", "prompt": "bm25"})


def score_own(task: Task, episode: Episode, reward: str) -> tuple[str | None, RewardResult]:
    return episode.answer, REWARDS[reward].score(Scored(task, episode, episode.answer, None))


RAMBLING = ["<think>hm</think>", "<answer>gar", "bage"]


@pytest.mark.parametrize("gold", ["and", "garbage", "Beijing", "text of A", "My previous action is invalid"])
@pytest.mark.parametrize("form", [False, True])
async def test_what_the_environment_wrote_is_never_the_policys_answer(gold: str, form: bool) -> None:
    task = TASK.model_copy(update={"golden_answers": (gold,)})
    episode, _, _ = await play([*RAMBLING, "<search>x</search>", "nothing"])
    assert "<answer> and </answer>" in scored_text(episode)
    answer, reward = score_own(task, episode, "format" if form else "exact_match")
    assert (answer, reward.value) == (None, 0.0)
    assert reward.metrics == {"accuracy": 0.0, "exact_match": 0.0, "format": 0.0}


async def test_a_hint_spoils_the_form_and_not_the_answer() -> None:
    task = TASK.model_copy(update={"golden_answers": ("krone",)})
    episode, _, _ = await play(["<think>hm</think>", "<think>so</think><answer>krone</answer>"])
    answer, reward = score_own(task, episode, "format")
    assert (answer, reward.value) == ("krone", 0.8)


@given(st.lists(hostile, min_size=1, max_size=5))
async def test_a_scored_answer_stands_whole_in_a_response(responses: list[str]) -> None:
    episode, _, _ = await play([*responses, "", "", "", "", ""])
    written = scored_responses(episode)
    answer = final_answer(*written)
    assert answer is None or any(answer in response for response in written)
    for gold in ("and", "Beijing", "text of A"):
        _, reward = score_own(TASK.model_copy(update={"golden_answers": (gold,)}), episode, "exact_match")
        assert reward.value == 0.0


async def test_an_own_answer_is_not_what_was_thought() -> None:
    episode, _, _ = await play(["<think>Ada</think> Bob"] * 5)
    assert "Ada" not in own_answer(episode)
    assert "Bob" in own_answer(episode)
