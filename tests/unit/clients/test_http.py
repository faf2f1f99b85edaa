"""The one way to call a service: what is retried, how long, and what the error says. No test waits."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st

from retrieval_server.retry_after import retry_after_s
from s3_agent.clients.http import (
    CONNECT_S,
    FIRST_WAIT_S,
    LONGEST_PAUSE_S,
    LONGEST_WAIT_S,
    attempt_ends,
    call_json,
    retry_wait_s,
)
from s3_agent.errors import RetrieverError

URL = "http://service/x"
OK = httpx.Response(200, json={"ok": True})
Clock = SimpleNamespace


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time that passes only by sleeping; `waits` holds every sleep."""
    clock = Clock(now=0.0, waits=[])

    async def sleep(seconds: float) -> None:
        clock.waits.append(seconds)
        clock.now += seconds

    monkeypatch.setattr("tenacity.asyncio._portable_async_sleep", sleep)
    monkeypatch.setattr("asyncio.sleep", sleep)
    monkeypatch.setattr(tenacity, "time", Clock(monotonic=lambda: clock.now, sleep=time.sleep, time=time.time))
    return clock


async def call(answers: Callable[[httpx.Request], httpx.Response] | list[Any], **kwargs: Any) -> Any:
    """Call a service that gives these answers one after the other, the last one for ever."""

    def scripted(_: httpx.Request) -> httpx.Response:
        assert isinstance(answers, list)
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    transport = httpx.MockTransport(scripted if isinstance(answers, list) else answers)
    async with httpx.AsyncClient(transport=transport) as client:
        return await call_json(client, "POST", URL, error=RetrieverError, **kwargs)


async def test_the_body_goes_out_and_the_answer_comes_back(clock: Clock) -> None:
    def echo(request: httpx.Request) -> httpx.Response:
        assert (request.method, str(request.url)) == ("POST", URL)
        return httpx.Response(200, content=request.content)

    assert await call(echo, body={"a": [1]}) == {"a": [1]}
    assert clock.waits == []


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_honoured(clock: Clock, status: int) -> None:
    paused = httpx.Response(status, headers={"Retry-After": "5"})
    assert await call([paused, paused, OK]) == {"ok": True}
    assert clock.waits == [5.0, 5.0]


@pytest.mark.parametrize("value", ["soon", "Wed, 21 Oct 2026 07:28:00 GMT", "-3", "nan"])
async def test_a_strange_retry_after_does_not_hurt(clock: Clock, value: str) -> None:
    assert await call([httpx.Response(429, headers={"Retry-After": value}), OK]) == {"ok": True}
    assert 0.0 <= clock.waits[0] <= LONGEST_WAIT_S


NO_WAIT = ("Wed, 21 Oct 2015 07:28:00 GMT", "0", "-1", "soon", "nan", "inf", "1e999", "", None)


def test_retry_after_may_be_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert 80 < (retry_after_s(later) or 0) <= 90
    assert [retry_after_s(value) for value in NO_WAIT] == [None] * len(NO_WAIT)


@pytest.mark.parametrize("value", ["0", "0.0", "-1", "1e-9", "Wed, 21 Oct 2015 07:28:00 GMT"])
async def test_a_service_that_asks_for_no_wait_is_not_asked_without_pause(clock: Clock, value: str) -> None:
    asked = 0

    def busy(_: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        return httpx.Response(429, headers={"Retry-After": value})

    with pytest.raises(RetrieverError, match="status 429"):
        await call(busy, patience_s=60.0)
    assert asked <= 60.0 / (FIRST_WAIT_S / 2) + 2
    assert min(clock.waits[:-1]) >= FIRST_WAIT_S / 2, "the last wait ends with the patience"


@given(st.integers(1, 10**9), st.none() | st.floats(0, 1e300))
def test_a_wait_is_never_next_to_nothing(tries: int, asked: float | None) -> None:
    wait = retry_wait_s(tries, asked)
    assert wait >= FIRST_WAIT_S / 2
    assert wait >= (asked or 0.0)
    assert asked is not None or wait <= LONGEST_WAIT_S


CUT = [
    httpx.ReadTimeout("slow"),
    httpx.ReadError("cut"),
    httpx.WriteError("cut"),
    httpx.RemoteProtocolError("cut"),
    httpx.DecodingError("not gzip"),
    httpx.Response(500),
    httpx.Response(502),
    httpx.Response(504),
]


@pytest.mark.parametrize("failure", CUT, ids=repr)
async def test_what_may_have_been_carried_out_is_not_done_twice(clock: Clock, failure: Any) -> None:
    with pytest.raises(RetrieverError, match="may have been carried out") as caught:
        await call([failure, OK], repeatable=False)
    assert caught.value.status is None, "an attempt that failed by it is tried again"
    assert clock.waits == []


@pytest.mark.parametrize(
    "failure",
    [httpx.ConnectError("refused"), httpx.ConnectTimeout("slow"), httpx.PoolTimeout("busy")]
    + [httpx.Response(status) for status in (408, 425, 429, 503)],
    ids=repr,
)
async def test_what_was_not_carried_out_is_asked_again(clock: Clock, failure: Any) -> None:
    assert await call([failure, failure, OK], repeatable=False) == {"ok": True}
    assert len(clock.waits) == 2


def paused(after: str = "5") -> httpx.Response:
    return httpx.Response(429, headers={"Retry-After": after, "X-Agl-Paused": "true"})


async def test_a_paused_gateway_is_waited_out_for_as_long_as_it_says_so(clock: Clock) -> None:
    assert await call([paused()] * 1000 + [OK], patience_s=0.2, repeatable=False) == {"ok": True}
    assert clock.now == 5000.0


async def test_the_patience_with_a_service_that_fails_begins_after_the_pause(clock: Clock) -> None:
    failing = [paused()] * 100 + [httpx.ConnectError("refused")]
    with pytest.raises(RetrieverError, match="failed for 60 s: ConnectError"):
        await call(failing, patience_s=60.0)
    assert clock.now == pytest.approx(99 * 5 + 60.0), "counted from the last answer that told of the pause"


@pytest.mark.parametrize("after", ["1e300", "1e9"])
async def test_a_pause_is_looked_at_again_whatever_the_gateway_asks_for(clock: Clock, after: str) -> None:
    assert await call([paused(after), OK]) == {"ok": True}
    assert clock.waits == [LONGEST_PAUSE_S]


@pytest.mark.parametrize("failure", [paused(), httpx.Response(503), httpx.ConnectError("refused")], ids=repr)
async def test_an_attempt_waits_until_just_before_its_end_and_says_for_what(clock: Clock, failure: Any) -> None:
    with attempt_ends(3600.0), pytest.raises(RetrieverError, match="failed for 3598 s"):
        await call([failure])
    assert clock.now == pytest.approx(3598.0, abs=0.5)


async def test_an_attempt_of_a_moment_tries_once_more_and_what_was_given_counts(clock: Clock) -> None:
    with attempt_ends(1.0), pytest.raises(RetrieverError, match="failed for"):
        await call([httpx.Response(503)])
    assert clock.now == pytest.approx(0.9, abs=0.1)
    with attempt_ends(3600.0), pytest.raises(RetrieverError, match="failed for 30 s"):
        await call([httpx.Response(503)], patience_s=30.0)


async def test_an_answer_may_take_as_long_as_the_attempt(clock: Clock) -> None:
    given_: list[dict[str, float]] = []

    def handle(request: httpx.Request) -> httpx.Response:
        given_.append(request.extensions["timeout"])
        return httpx.Response(200, json={})

    transport = httpx.MockTransport(handle)
    async with httpx.AsyncClient(transport=transport, timeout=httpx.Timeout(300.0, connect=7.0)) as client:
        await call_json(client, "GET", URL, error=RetrieverError)
        with attempt_ends(3600.0):
            await call_json(client, "GET", URL, error=RetrieverError)
        await call_json(client, "GET", URL, error=RetrieverError)
    assert [round(timeout["read"], -1) for timeout in given_] == [300.0, 3600.0, 300.0]
    assert [timeout["connect"] for timeout in given_] == [7.0, CONNECT_S, 7.0]


@pytest.mark.parametrize("value", ["inf", "1e9", "3600"])
async def test_a_service_can_not_make_us_wait_beyond_our_patience(clock: Clock, value: str) -> None:
    with pytest.raises(RetrieverError, match="failed for 30 s: status 429"):
        await call([httpx.Response(429, headers={"Retry-After": value})], patience_s=30.0)
    assert clock.now == 30.0


@pytest.mark.parametrize(
    "failure",
    [
        httpx.Response(408),
        httpx.Response(425),
        httpx.Response(500),
        httpx.Response(502),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("cut"),
        httpx.DecodingError("not gzip"),
    ],
    ids=repr,
)
async def test_passing_failures_are_retried_with_growing_waits(clock: Clock, failure: Any) -> None:
    assert await call([failure] * 7 + [OK]) == {"ok": True}
    assert len(clock.waits) == 7
    for number, wait in enumerate(clock.waits, 1):
        longest = min(LONGEST_WAIT_S, 0.25 * 2**number)
        assert longest / 2 <= wait <= longest


async def test_what_stays_down_is_an_error_that_names_service_cause_and_remedy(clock: Clock) -> None:
    with pytest.raises(RetrieverError, match="ConnectError refused") as caught:
        await call([httpx.ConnectError("refused")], patience_s=60.0)
    assert clock.now == pytest.approx(60.0)
    assert URL in caught.value.message and "retriever" in caught.value.remedy
    assert caught.value.status is None


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422, 501])
async def test_a_refusal_raises_at_once_with_its_status(clock: Clock, status: int) -> None:
    with pytest.raises(RetrieverError, match=f"status {status}: no such thing") as caught:
        await call([httpx.Response(status, text="no such thing"), OK])
    assert caught.value.status == status
    assert clock.waits == []


@pytest.mark.parametrize(
    "answer",
    [httpx.Response(200, text="<html>"), httpx.Response(200, content=b"\xff\xfe"), httpx.Response(204)],
    ids=repr,
)
async def test_an_answer_that_is_not_json_is_an_error(clock: Clock, answer: httpx.Response) -> None:
    with pytest.raises(RetrieverError, match="did not answer with JSON") as caught:
        await call([answer])
    assert caught.value.status is None
    assert clock.waits == []


async def test_a_long_error_page_is_cut(clock: Clock) -> None:
    with pytest.raises(RetrieverError) as caught:
        await call([httpx.Response(400, text="x" * 100_000)])
    assert len(str(caught.value)) < 2000
