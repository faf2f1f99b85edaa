"""What the gateway has recorded of an attempt, read as Agent Lightning itself reads it."""

from typing import Any

import pytest

pytest.importorskip("agentlightning.verl.agl_rollout_manager")

from agentlightning.schemas import Event, Rollout
from agentlightning.server.routes.events import _dedupe_model_requests_by_prompt_token_ids, _to_triplet_format
from agentlightning.verl.agl_rollout_manager import AglRolloutManagerBase, CompletedRollout, EnqueuedRollout
from hypothesis import given
from hypothesis import strategies as st

from s3_agent.rollout.pool.recorded import NO_TOKENS, OTHER_CHOICES, SAME_PROMPT, reward_of, untrained_answers


def reward(value: Any) -> dict[str, Any]:
    return {"event_type": "reward", "data": {"value": value}}


def call(prompt: list[int], *answers: list[int], chat: bool = False, status: int = 200) -> dict[str, Any]:
    """A policy call as the gateway records it, chat or completion, with one choice for each answer."""
    of_choice = {} if chat else {"prompt_token_ids": prompt}
    response = {"choices": [{"token_ids": ids, **of_choice} for ids in answers]}
    body = {**response, "prompt_token_ids": prompt} if chat else response
    ended = {"http_status": status, "status": "ok" if status < 400 else "error"}
    return {"event_type": "model_request", "data": {"response": body if status < 400 else {"error": "?"}, **ended}}


def completed(events: list[dict[str, Any]]) -> CompletedRollout:
    """What Agent Lightning's own functions make of the events, from the gateway's route to the trainer's rows."""
    raw = [Event(rollout_id="r", attempt_id="a", timestamp=0.0, **event) for event in events]
    told = _dedupe_model_requests_by_prompt_token_ids([_to_triplet_format(event) for event in raw])
    manager: Any = object.__new__(AglRolloutManagerBase)
    manager._fetch_rollout_events = lambda _: (raw, told)
    enqueued = EnqueuedRollout(data_id="d", rollout_id="r", step=1, sample_idx_in_step=0, enqueue_time=0.0)
    status = {"state": "succeeded", "last_attempt_id": "a", "created_at": 0.0, "updated_at": 1.0}
    rollout = Rollout.model_validate({"rollout_id": "r", "input": {}, "config": {}, "status": status})
    return manager._build_completed_rollout(enqueued, rollout)


@pytest.mark.parametrize("value", [0, 1, -0.25, 0.901, True, False, "0.5", None, [0.5], {"value": 1}])
def test_a_reward_is_one_exactly_where_agent_lightning_sees_one(value: Any) -> None:
    theirs = completed([reward(1.0), reward(value)]).final_reward
    if theirs is None:
        with pytest.raises(ValueError, match="posted no reward that is a finite number: its last is"):
            reward_of([reward(1.0), reward(value)])
    else:
        assert reward_of([reward(1.0), reward(value)]) == theirs == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400])
def test_a_number_that_is_not_finite_is_no_reward(value: float) -> None:
    """The gateway answers null for NaN and infinite ones: tests/integration/test_env_contract.py."""
    with pytest.raises(ValueError, match="posted no reward that is a finite number"):
        reward_of([reward(value)])


def test_without_a_reward_event_there_is_none() -> None:
    assert completed([call([1], [2])]).final_reward is None
    with pytest.raises(ValueError, match="posted no reward"):
        reward_of([call([1], [2])])


@pytest.mark.parametrize("chat", [True, False])
def test_each_reason_is_named(chat: bool) -> None:
    again = [call([1, 2], [3], chat=chat), call([1, 2], [4], chat=chat)]
    assert untrained_answers(again) == {SAME_PROMPT: 1}
    [kept] = completed(again).triplets or []
    assert kept.response["token_ids"] == [4], "the last answer, whichever was used"
    several = [call([1], [2], [3], [4], chat=chat)]
    assert untrained_answers(several) == {OTHER_CHOICES: 2}
    [kept] = completed(several).triplets or []
    assert kept.response["token_ids"] == [2], "the first choice, whichever was used"
    assert untrained_answers([{**call([], [], chat=chat)}]) == {NO_TOKENS: 1}
    assert untrained_answers([call([1], [2], chat=chat), call([1, 2, 3], [4], chat=chat), reward(1)]) == {}


_IDS = st.lists(st.integers(1, 2), max_size=2)
_CALLS = st.builds(
    lambda prompt, answers, chat, status: call(prompt, *answers, chat=chat, status=status),
    _IDS,
    st.lists(_IDS, min_size=1, max_size=3),
    st.booleans(),
    st.sampled_from([200, 200, 200, 400]),
)


@given(st.lists(_CALLS, max_size=6))
def test_every_answer_is_trained_or_counted(events: list[dict[str, Any]]) -> None:
    answered = sum(len(event["data"]["response"]["choices"]) for event in events if event["data"]["status"] == "ok")
    trained = len(completed(events).triplets or [])
    assert untrained_answers(events).total() == answered - trained
