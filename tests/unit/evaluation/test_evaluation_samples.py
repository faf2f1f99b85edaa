"""Samples: unbiased pass@k, votes, one number for each question; only what a seed changes is sampled."""

import json
from collections import Counter
from itertools import combinations
from math import comb
from statistics import fmean

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3_agent.agents.methods import Sampling
from s3_agent.errors import ConfigError
from s3_agent.evaluation.contestants import Contestant, PolicyUnderTest, with_samples
from s3_agent.evaluation.records import SCORES, EvaluatedTask, Failure
from s3_agent.evaluation.samples import TOO_LONG, joint_values, ks_of, majority, pass_at, vote_of
from s3_agent.evaluation.services import policy_client
from s3_agent.evaluation.table import numbers_of, table_of
from s3_agent.evaluation.views.table import markdown
from s3_agent.recipe import load_recipe
from s3_agent.rollout.runner import AgentSettings
from s3_agent.types import Task


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.data())
def test_pass_at_k_is_the_mean_over_all_choices_of_k_samples(right: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(right)))
    chosen = [any(some) for some in combinations(right, k)]
    assert pass_at(k, n=len(right), correct=sum(right)) == pytest.approx(sum(chosen) / comb(len(right), k))


def test_the_estimate_has_no_bias() -> None:
    draw, chance = np.random.default_rng(0), 0.3
    estimates = [pass_at(3, n=8, correct=int(draw.binomial(8, chance))) for _ in range(20_000)]
    assert fmean(estimates) == pytest.approx(1 - (1 - chance) ** 3, abs=0.01)


@pytest.mark.parametrize(("k", "n", "correct"), [(0, 4, 1), (5, 4, 1), (1, 4, 5), (1, 4, -1)])
def test_what_can_not_be_estimated_is_refused(k: int, n: int, correct: int) -> None:
    with pytest.raises(ValueError, match="needs at least"):
        pass_at(k, n=n, correct=correct)


def test_which_k_are_reported() -> None:
    assert [ks_of(n) for n in (2, 3, 4, 5, 8, 10)] == [[2], [2, 3], [2, 4], [2, 4, 5], [2, 4, 8], [2, 4, 8, 10]]


VOTES = st.lists(st.sampled_from(["a", "b", "c", None, ""]), min_size=1, max_size=8)


@given(VOTES)
def test_the_majority_is_the_most_frequent_answer_and_the_first_of_equals(votes: list[str | None]) -> None:
    right = [float(vote == "b") for vote in votes]
    counted = Counter(vote for vote in votes if vote)
    most = max(counted.values(), default=0)
    winner = next((vote for vote in votes if vote and counted[vote] == most), None)
    assert majority(votes, right) == float(winner == "b")


def test_a_long_answer_has_no_vote() -> None:
    assert vote_of("The Norwegian krone.") == vote_of("norwegian krone")
    assert vote_of("word " * 11) == TOO_LONG
    assert "majority@2" not in joint_values([TOO_LONG, "a"], [1.0, 0.0])
    assert joint_values(["a", "a"], [1.0, 1.0]) == {"avg@2": 1.0, "pass@2": 1.0, "majority@2": 1.0}


def contestant(label: str, sampled_at: float | None, **request: float) -> Contestant:
    policy = PolicyUnderTest(model="m", request=request, identity={})
    return Contestant(
        label=label,
        settings=AgentSettings.model_validate({"name": label}),
        sampling=None if sampled_at is None else Sampling(temperature=sampled_at),
        policy=None if sampled_at is None else policy,
    )


def test_each_sample_has_its_own_seed_and_key_and_the_first_is_that_of_one_sample() -> None:
    sampled, rag = contestant("s3", 0.6), contestant("rag", None)
    found = with_samples([sampled, rag], 4)
    assert [one.id for one in found] == ["s3", "s3#1", "s3#2", "s3#3", "rag"]
    assert with_samples([sampled, rag], 1) == [sampled, rag]
    seeds = {one.seed(seed) for one in found[:4] for seed in (0, 1)}
    assert len(seeds) == 8 and found[0].seed(7) == 7
    keys = [one.key(index={}, seed=0) for one in found[:4]]
    assert len({*keys}) == 4 and keys[0] == sampled.key(index={}, seed=0)


@pytest.mark.parametrize(
    "contestants",
    [
        [contestant("s3", 0.0)],
        [contestant("s3", 0.6), contestant("ircot", 0.0)],
        [contestant("ircot", 0.7, temperature=0.0)],
        [contestant("rag", None), contestant("direct", None)],
    ],
)
def test_samples_that_would_be_equal_are_refused(contestants: list[Contestant]) -> None:
    with pytest.raises(ConfigError, match=r"4 samples .*would be equal"):
        with_samples(contestants, 4)


def result(question: int, sample: int, *, right: bool, answer: str = "x", failed: bool = False) -> EvaluatedTask:
    task = Task(id=f"q{question}", question="q", golden_answers=("x",))
    if failed:
        failure = Failure(boundary="policy", message="gone")
        return EvaluatedTask(agent="s3", task=task, state="failed", sample=sample, failure=failure)
    scores = {name: float(right) for name in SCORES}
    return EvaluatedTask(agent="s3", task=task, state="done", sample=sample, answer=answer, scores=scores)


def test_samples_of_a_question_are_one_number_in_any_order() -> None:
    rows = [result(question, sample, right=sample <= question) for question in range(4) for sample in range(4)]
    table = table_of(map(numbers_of, reversed(rows)), ["s3"])
    [agent] = table.agents
    assert (agent.questions, agent.samples, agent.evaluated, agent.results) == (4, 4, 16, 16)
    found = {name: (one.mean, one.n) for name, one in agent.overall.items()}
    assert found["gen_acc"] == found["avg@4"] == (pytest.approx((1 + 2 + 3 + 4) / 16), 4)
    assert found["pass@4"] == (1.0, 4)
    assert found["pass@2"] == (pytest.approx(fmean([1 - comb(4 - c, 2) / comb(4, 2) for c in (1, 2, 3, 4)])), 4)
    assert "| s3 | 16/4x4 |" in markdown(table) and "pass@4" in markdown(table)


def test_a_missing_sample_takes_its_question_out_of_pass_at_k_and_is_never_wrong() -> None:
    rows = [result(0, sample, right=True) for sample in range(3)] + [result(0, 3, right=False, failed=True)]
    rows += [result(1, sample, right=False) for sample in range(4)]
    [agent] = table_of(map(numbers_of, rows), ["s3"]).agents
    assert agent.failed == {"policy": 1} and agent.evaluated == 7
    assert (agent.overall["gen_acc"].mean, agent.overall["gen_acc"].n) == (0.5, 2)
    assert (agent.overall["pass@4"].mean, agent.overall["pass@4"].n) == (0.0, 1)
    assert agent.overall["pass@4"].high == pytest.approx(0.793, abs=0.001), "Wilson's interval"
    assert "0.000 [0.000, 0.793] n 1" in markdown(table_of(map(numbers_of, rows), ["s3"]))


def test_intervals_are_over_questions_and_not_over_samples() -> None:
    """Equal samples of a question add nothing: the interval is that of one sample."""
    right = [question % 3 == 0 for question in range(60)]
    once = table_of([numbers_of(result(q, 0, right=right[q])) for q in range(60)], ["s3"]).agents[0]
    often = table_of([numbers_of(result(q, s, right=right[q])) for q in range(60) for s in range(8)], ["s3"]).agents[0]
    assert often.overall["gen_acc"] == once.overall["gen_acc"]


async def test_each_sample_sends_its_own_seed() -> None:
    sent: list[int] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"data": [{"id": "m"}]})
        sent.append(json.loads(request.content)["seed"])
        reply = {"message": {"content": "x"}, "finish_reason": "stop"}
        return httpx.Response(200, json={"choices": [reply], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})

    chat = contestant("ircot", 0.7)
    assert chat.policy is not None
    chat = chat.model_copy(update={"policy": chat.policy.model_copy(update={"mode": "chat", "url": "http://p/v1"})})
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        for _ in range(2):
            for one in with_samples([chat], 3):
                client = policy_client(one, "http://p/v1", http=http, recipe=load_recipe("cpu"))
                await client.converse("the same question").generate(max_tokens=4, stop=())
    assert len({*sent[:3]}) == 3 and sent[3:] == sent[:3]
