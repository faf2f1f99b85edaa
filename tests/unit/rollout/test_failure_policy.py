"""When a failed attempt is tried again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3_agent.rollout.failure_policy import FailurePolicy
from s3_agent.rollout.jobs import Failure


def failure(boundary: str = "generator", *, retried: bool = True) -> Failure:
    return Failure(boundary=boundary, message="it failed", retried=retried)


@given(attempts=st.integers(1, 10_000), left=st.floats(0, 1e6))
def test_a_wait_is_bounded_and_fits_the_deadline(attempts: int, left: float) -> None:
    policy = FailurePolicy()
    wait = policy.wait(failure(), attempts=attempts, left=left)
    if wait is None:
        assert left <= policy.longest_wait_s, "given up only at the deadline"
    else:
        assert 0 < wait < left and wait <= policy.longest_wait_s


def test_waits_grow() -> None:
    policy = FailurePolicy()
    waits = [policy.wait(failure(), attempts=attempts, left=1e6) or 0 for attempts in (1, 3, 5)]
    assert waits == sorted(waits) and waits[0] <= policy.first_wait_s


@pytest.mark.parametrize("boundary", ["policy", "retriever", "generator", "judge", "worker", "agent", "timeout"])
def test_what_can_pass_is_tried_again(boundary: str) -> None:
    assert FailurePolicy().wait(failure(boundary), attempts=1, left=100) is not None


@pytest.mark.parametrize(
    "hopeless", [failure(retried=False), failure("config"), failure("agent-import"), failure("agent-not-allowed")]
)
def test_what_would_fail_again_is_given_up(hopeless: Failure) -> None:
    assert FailurePolicy().wait(hopeless, attempts=1, left=100) is None


def test_the_declared_bounds_hold() -> None:
    policy = FailurePolicy(most_attempts=3, attempt_timeout_s=7, retried=frozenset({"worker"}))
    assert policy.wait(failure("worker"), attempts=2, left=100) is not None
    assert policy.wait(failure("worker"), attempts=3, left=100) is None
    assert policy.wait(failure("policy"), attempts=1, left=100) is None
    assert (policy.seconds(100), policy.seconds(5)) == (7, 5)
