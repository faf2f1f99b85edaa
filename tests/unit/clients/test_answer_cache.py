"""One question, one call: content addresses, single-flight in and across processes, and nothing kept that failed."""

import asyncio
import json
import multiprocessing
import os
import pickle
import sqlite3
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from s3_agent.clients.answers import cache as answer_cache
from s3_agent.clients.answers.cache import MOST_FAILURES, CachedChat, asked_model, content_address
from s3_agent.clients.answers.store import ASIDE, AnswerStore
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
    monkeypatch.setattr(answer_cache, "LEASE_S", 2.0)
    monkeypatch.setattr(answer_cache, "RENEW_S", 0.1)
    slow, other = Model(), Model()
    slow.go.clear()
    holding = asyncio.create_task(cached(slow, tmp_path).reply(ASKED))
    while not slow.calls:
        await asyncio.sleep(0.01)
    waiting = asyncio.create_task(cached(other, tmp_path).reply(ASKED))
    await asyncio.sleep(3.0)
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


class Harmless:
    """Unpickling it makes a file, and does nothing else."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def store_of_an_earlier_version(folder: Path, value: object) -> None:
    """As diskcache lays it out: mode 4 has its reader unpickle the value."""
    with closing(sqlite3.connect(folder / "cache.db")) as file:
        file.execute("CREATE TABLE Settings (key TEXT NOT NULL UNIQUE, value)")
        file.execute("CREATE TABLE Cache (rowid INTEGER PRIMARY KEY, key BLOB, raw INTEGER, mode INTEGER, value BLOB)")
        key = content_address(SETTINGS, ASKED)
        file.execute("INSERT INTO Cache (key, raw, mode, value) VALUES (?, 1, 4, ?)", (key, pickle.dumps(value)))
        file.commit()


async def test_a_store_of_an_earlier_version_is_left_aside_and_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made-by-unpickling"
    store_of_an_earlier_version(tmp_path, Harmless(made))
    before = (tmp_path / "cache.db").read_bytes()
    model = Model()
    chats = [cached(model, tmp_path) for _ in range(3)]
    assert await asyncio.gather(*(chat.reply(ASKED) for chat in chats)) == ["reply 1"] * 3
    assert not made.exists()
    assert (tmp_path / ASIDE).read_bytes() == before
    assert f"store={tmp_path / ASIDE}" in capsys.readouterr().out


PICKLED = pickle.dumps("x")


@pytest.mark.parametrize("value", [PICKLED, "no JSON", "[" * 5000, "9" * 5000, '["x"]', 3, '{"a": "b"}'])
async def test_a_row_that_holds_no_reply_is_none(value: Any, tmp_path: Path) -> None:
    chat = cached(Model(), tmp_path)
    await chat.reply([{"role": "user", "content": "opens the file"}])
    with closing(sqlite3.connect(tmp_path / "cache.db")) as file:
        row = (content_address(SETTINGS, ASKED), value, time.time())
        file.execute("INSERT OR IGNORE INTO replies (key, reply, kept) VALUES (?, ?, ?)", row)
        file.commit()
    assert [await chat.reply(ASKED) for _ in range(2)] == ["reply 2"] * 2
    assert chat.counts["bypassed"] == 0


@pytest.mark.parametrize(
    "foreign",
    [
        "CREATE TRIGGER t AFTER INSERT ON leases BEGIN DELETE FROM replies; END",
        "CREATE VIEW v AS SELECT * FROM replies",
        "CREATE TABLE more (x)",
    ],
)
async def test_a_store_with_tables_of_others_is_not_used(foreign: str, tmp_path: Path) -> None:
    await cached(Model(), tmp_path).reply(ASKED)
    with closing(sqlite3.connect(tmp_path / "cache.db")) as file:
        file.execute(foreign)
    chat = cached(Model(), tmp_path)
    assert await chat.reply(ASKED) == "reply 1"
    assert chat.counts == {"bypassed": 1}


async def test_a_locked_store_stops_no_other_work_and_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    released = threading.Event()
    waiting: list[str] = []

    class Locked(AnswerStore):
        """Waits like a locked file, for as long as the test wants."""

        def claim(self, key: str, holder: str, *, seconds: float) -> Any:
            waiting.append(key)
            assert released.wait(60)
            raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(answer_cache, "AnswerStore", Locked)
    chat = cached(Model(), tmp_path)
    asking = [
        asyncio.create_task(chat.reply([{"role": "user", "content": str(number)}]))
        for number in range(MOST_FAILURES + 5)
    ]
    while not waiting:
        await asyncio.sleep(0)  # the loop runs while the store waits in its thread
    released.set()
    assert len(set(await asyncio.gather(*asking))) == len(asking)
    assert len(waiting) == MOST_FAILURES
    assert chat.counts == {"bypassed": len(asking)}
    assert capsys.readouterr().out.count("given up for this run") == 1
    assert await chat.reply(ASKED) and len(waiting) == MOST_FAILURES


async def test_a_lock_that_passes_is_no_reason_to_give_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_cache, "LOCK_WAIT_S", 0)
    chat = cached(Model(), tmp_path)
    await chat.reply(ASKED)
    for number in range(MOST_FAILURES + 1):
        with closing(sqlite3.connect(tmp_path / "cache.db", isolation_level=None)) as lock:
            lock.execute("BEGIN EXCLUSIVE")
            await chat.reply([{"role": "user", "content": f"locked {number}"}])
        await chat.reply([{"role": "user", "content": f"free {number}"}])
    assert (chat.counts["bypassed"], chat.counts["calls"]) == (MOST_FAILURES + 1, MOST_FAILURES + 2)


async def test_the_oldest_replies_give_way(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path, max_bytes=1 << 20, wait_s=1)
    for number in range(700):
        store.end(str(number), "holder", "x" * 4000)
    assert store.kept("0") is None and store.kept("699") is not None
    assert sum(file.stat().st_size for file in tmp_path.glob("cache.db")) < 3 << 20


async def test_a_reply_with_half_a_surrogate_pair_is_kept(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path, max_bytes=1 << 20, wait_s=1)
    store.end("key", "holder", "a\ud800")
    kept = store.kept("key")
    assert kept is not None and kept.reply == "a\ud800"


@pytest.mark.parametrize(
    "change", [{"model": "other"}, {"max_tokens": 10}, {"max_tokens": None}, {"kind": "anthropic"}], ids=str
)
def test_another_model_or_bound_is_another_question(change: dict) -> None:
    assert content_address(SETTINGS.model_copy(update=change), ASKED) != content_address(SETTINGS, ASKED)


def test_the_address_is_of_the_content_alone() -> None:
    patient = SETTINGS.model_copy(update={"patience_s": 1.0})
    assert content_address(patient, json.loads(json.dumps(ASKED))) == content_address(SETTINGS, ASKED)
    assert content_address(SETTINGS, [{"role": "user", "content": "\ud800"}]) != content_address(SETTINGS, ASKED)
