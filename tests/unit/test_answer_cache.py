"""One question, one call: content addresses, single-flight in and across processes, and nothing kept that failed."""

import asyncio
import json
import multiprocessing
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest

from s3_agent.clients import answer_cache
from s3_agent.clients.answer_cache import CachedChat, asked_model, content_address
from s3_agent.clients.chat_model import Message, ModelSettings
from s3_agent.errors import GeneratorError

SETTINGS = ModelSettings(model="m", max_tokens=9)
ASKED: list[Message] = [{"role": "user", "content": "q"}]


class Model:
    """Replies with the number of its call when it is let go; the first `failures` calls fail."""

    def __init__(self, *, failures: int = 0) -> None:
        self.calls = 0
        self.failures = failures
        self.go = asyncio.Event()
        self.go.set()

    async def reply(self, messages: Sequence[Message]) -> str:
        self.calls += 1
        number = self.calls
        await self.go.wait()
        if number <= self.failures:
            raise GeneratorError("as told")
        return f"reply {number}"


def cached(model: Model, folder: Path) -> CachedChat:
    return CachedChat(model, SETTINGS, folder, max_bytes=1 << 20)


async def test_a_reply_is_kept_for_every_process_that_opens_the_folder(tmp_path: Path) -> None:
    model = Model()
    first, second = cached(model, tmp_path), cached(model, tmp_path)
    assert [await first.reply(ASKED), await first.reply(ASKED), await second.reply(ASKED)] == ["reply 1"] * 3
    assert (first.counts, second.counts) == ({"calls": 1, "hits": 1}, {"hits": 1})


async def test_each_task_knows_whether_the_model_was_asked_for_it(tmp_path: Path) -> None:
    model = Model()
    model.go.clear()
    chat = cached(model, tmp_path)

    async def ask() -> bool:
        await chat.reply(ASKED)
        return asked_model.get()

    siblings = [asyncio.create_task(ask()) for _ in range(3)]
    while model.calls == 0:
        await asyncio.sleep(0)
    model.go.set()
    assert sorted(await asyncio.gather(*siblings)) == [False, False, True]
    assert await asyncio.create_task(ask()) is False, "kept"


async def test_siblings_that_ask_at_once_cost_one_call(tmp_path: Path) -> None:
    model = Model()
    model.go.clear()
    pools = [cached(model, tmp_path) for _ in range(2)]
    asking = [asyncio.create_task(pool.reply(ASKED)) for pool in pools for _ in range(4)]
    while model.calls == 0:
        await asyncio.sleep(0)
    model.go.set()
    assert set(await asyncio.gather(*asking)) == {"reply 1"}
    assert model.calls == 1
    assert sum(pool.counts["shared"] for pool in pools) == 7


async def test_a_failure_reaches_those_who_waited_and_is_not_kept(tmp_path: Path) -> None:
    model = Model(failures=1)
    model.go.clear()
    chat = cached(model, tmp_path)
    asking = [asyncio.create_task(chat.reply(ASKED)) for _ in range(3)]
    while model.calls == 0:
        await asyncio.sleep(0)
    model.go.set()
    assert all(isinstance(result, GeneratorError) for result in await asyncio.gather(*asking, return_exceptions=True))
    assert await chat.reply(ASKED) == "reply 2"


async def test_a_cancelled_rollout_does_not_take_the_reply_from_its_siblings(tmp_path: Path) -> None:
    model = Model()
    model.go.clear()
    chat = cached(model, tmp_path)
    first, second = (asyncio.create_task(chat.reply(ASKED)) for _ in range(2))
    while model.calls == 0:
        await asyncio.sleep(0)
    first.cancel()
    model.go.set()
    assert await second == "reply 1"


def die_holding(folder: str) -> None:
    class Dies(Model):
        async def reply(self, messages: Sequence[Message]) -> str:
            os._exit(7)

    asyncio.run(cached(Dies(), Path(folder)).reply(ASKED))


async def test_a_holder_that_died_is_waited_for_no_longer_than_its_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_cache, "LEASE_S", 1.0)  # inherited by the forked holder
    holder = multiprocessing.get_context("fork").Process(target=die_holding, args=(str(tmp_path),))
    holder.start()
    holder.join()
    assert holder.exitcode == 7
    model = Model()
    async with asyncio.timeout(60):
        assert await cached(model, tmp_path).reply(ASKED) == "reply 1"
    assert model.calls == 1


async def test_a_holder_that_lives_keeps_its_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_cache, "LEASE_S", 0.3)
    monkeypatch.setattr(answer_cache, "RENEW_S", 0.05)
    slow, other = Model(), Model()
    slow.go.clear()
    holding = asyncio.create_task(cached(slow, tmp_path).reply(ASKED))
    waiting = asyncio.create_task(cached(other, tmp_path).reply(ASKED))
    await asyncio.sleep(1.0)
    slow.go.set()
    assert await holding == await waiting == "reply 1"
    assert (slow.calls, other.calls) == (1, 0)


async def test_a_cache_that_can_not_be_used_is_passed_by(tmp_path: Path) -> None:
    (tmp_path / "cache.db").write_bytes(b"no database" * 100)
    chat = cached(Model(), tmp_path)
    assert [await chat.reply(ASKED) for _ in range(2)] == ["reply 1", "reply 2"]
    assert chat.counts["bypassed"] == 2


async def test_a_locked_cache_is_passed_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_cache, "LOCK_WAIT_S", 0)
    chat = cached(Model(), tmp_path)
    await chat.reply([{"role": "user", "content": "opens the file"}])
    with sqlite3.connect(tmp_path / "cache.db", isolation_level=None) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        assert await chat.reply(ASKED) == "reply 2"
        lock.execute("ROLLBACK")
    assert chat.counts["bypassed"] == 1


@pytest.mark.parametrize(
    "change", [{"model": "other"}, {"max_tokens": 10}, {"max_tokens": None}, {"kind": "anthropic"}], ids=str
)
def test_another_model_or_bound_is_another_question(change: dict) -> None:
    assert content_address(SETTINGS.model_copy(update=change), ASKED) != content_address(SETTINGS, ASKED)


def test_the_address_is_of_the_content_alone() -> None:
    patient = SETTINGS.model_copy(update={"patience_s": 1.0})
    assert content_address(patient, json.loads(json.dumps(ASKED))) == content_address(SETTINGS, ASKED)
    assert content_address(SETTINGS, [{"role": "user", "content": "\ud800"}]) != content_address(SETTINGS, ASKED)
