"""The batcher: what is searched together, in which order, and what happens to queries whose search or client fails."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from retrieval_server.batcher import Batcher, Hits, Overloaded, SearchFailed
from retrieval_server.errors import SearchRefused
from retrieval_server.metrics import Metrics


class Engine:
    """Answers a query with its length as row, `topk` times. A search waits while `gate` is closed."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Semaphore(0)

    def search(self, queries: Sequence[str], topk: int) -> list[Hits]:
        self.batches.append(list(queries))
        self.begun.release()
        assert self.gate.wait(30)
        if "bad" in queries:
            raise ValueError("a bad query")
        if "panic" in queries:
            raise SystemExit("as a Rust panic, no Exception")
        if "refused" in queries:
            raise SearchRefused(403, "refused_by_reranker", "a passage is too long", "cut it")
        return [[(len(query), 1.0 / (rank + 1)) for rank in range(topk)] for query in queries]

    async def searching(self) -> None:
        assert await asyncio.to_thread(self.begun.acquire, True, 30)


@asynccontextmanager
async def batching(engine: Engine, **limits: Any) -> AsyncIterator[Batcher]:
    wanted = {"max_cost": 1000, "max_queries": 100, "max_queued": 100} | limits
    batcher = Batcher(engine.search, len, metrics=Metrics(), **wanted)
    try:
        yield batcher
    finally:
        engine.gate.set()
        await batcher.close()


async def behind_a_search(engine: Engine, batcher: Batcher) -> asyncio.Future[Hits]:
    """A search that runs until the gate opens."""
    engine.gate.clear()
    first = batcher.submit("first", topk=1)
    await engine.searching()
    return first


async def test_a_lone_query_is_searched_at_once() -> None:
    engine = Engine()
    async with batching(engine) as batcher:
        assert await batcher.submit("abc", topk=2) == [(3, 1.0), (3, 0.5)]
        assert await batcher.submit("ab", topk=1) == [(2, 1.0)]
    assert engine.batches == [["abc"], ["ab"]]


async def test_queries_gather_while_a_search_runs_and_go_longest_first() -> None:
    engine = Engine()
    async with batching(engine) as batcher:
        first = await behind_a_search(engine, batcher)
        queries = ["a", "abc", "ab"]
        rest = [batcher.submit(query, topk=topk) for query, topk in zip(queries, (1, 2, 3), strict=True)]
        assert batcher.queued() == 3
        engine.gate.set()
        assert [len(hits) for hits in await asyncio.gather(first, *rest)] == [1, 1, 2, 3]
        assert [(await answer)[0][0] for answer in rest] == [1, 3, 2]
    assert engine.batches == [["first"], ["abc", "ab", "a"]]


@pytest.mark.parametrize(
    ("limits", "sizes"), [({"max_cost": 6}, [3, 2]), ({"max_queries": 2}, [2, 2, 1]), ({"max_cost": 1}, [1] * 5)]
)
async def test_a_batch_keeps_to_its_budget_oldest_first(limits: dict[str, int], sizes: list[int]) -> None:
    engine = Engine()
    async with batching(engine, **limits) as batcher:
        await behind_a_search(engine, batcher)
        rest = [batcher.submit(f"q{number}", topk=1) for number in range(5)]
        engine.gate.set()
        await asyncio.gather(*rest)
    assert [len(batch) for batch in engine.batches[1:]] == sizes
    assert [query for batch in engine.batches[1:] for query in batch] == [f"q{number}" for number in range(5)]


async def test_a_query_whose_client_left_is_not_searched() -> None:
    engine = Engine()
    async with batching(engine) as batcher:
        first = await behind_a_search(engine, batcher)
        left, stays = batcher.submit("left", topk=1), batcher.submit("stays", topk=1)
        left.cancel()
        first.cancel()  # this one is being searched already: its answer goes nowhere
        await asyncio.sleep(0)
        assert batcher.queued() == 1
        engine.gate.set()
        assert await stays == [(5, 1.0)]
    assert engine.batches == [["first"], ["stays"]]


async def test_a_full_queue_refuses_and_takes_again_when_there_is_room() -> None:
    engine = Engine()
    async with batching(engine, max_queued=2) as batcher:
        batcher.admit(5)  # an empty queue takes a request of any size
        await behind_a_search(engine, batcher)
        batcher.admit(2)
        rest = [batcher.submit(query, topk=1) for query in ("a", "b")]
        with pytest.raises(Overloaded) as refused:
            batcher.admit(1)
        assert 1 <= refused.value.retry_after_s <= 30
        engine.gate.set()
        await asyncio.gather(*rest)
        batcher.admit(2)


@pytest.mark.parametrize("bad", ["bad", "panic"])
async def test_one_bad_query_fails_alone_and_the_next_batch_is_searched(bad: str) -> None:
    engine = Engine()
    async with batching(engine) as batcher:
        await behind_a_search(engine, batcher)
        good = [batcher.submit(f"good{number}", topk=1) for number in range(6)]
        failing = batcher.submit(bad, topk=1)
        engine.gate.set()
        with pytest.raises(SearchFailed, match=r"a bad query|as a Rust panic"):
            await failing
        assert await asyncio.gather(*good) == [[(5, 1.0)]] * 6
        assert await batcher.submit("after", topk=1) == [(5, 1.0)]


async def test_a_search_that_will_be_refused_again_is_refused_as_it_is() -> None:
    engine = Engine()
    async with batching(engine) as batcher:
        await behind_a_search(engine, batcher)
        good, refused = batcher.submit("good", topk=1), batcher.submit("refused", topk=1)
        engine.gate.set()
        with pytest.raises(SearchRefused, match="a passage is too long") as raised:
            await refused
        assert (raised.value.status, raised.value.remedy) == (403, "cut it")
        assert await good == [(4, 1.0)]


@pytest.mark.parametrize("answer", [lambda queries, topk: [], lambda queries, topk: 1 / 0])
async def test_a_broken_backend_fails_each_query_and_ends_nothing(answer: Callable[..., Any]) -> None:
    engine = Engine()
    async with batching(engine) as batcher:
        search, batcher._search = batcher._search, answer
        answers = await asyncio.gather(*(batcher.submit(str(n), topk=1) for n in range(3)), return_exceptions=True)
        assert all(isinstance(error, SearchFailed) for error in answers)
        batcher._search = search
        assert await batcher.submit("ok", topk=1) == [(2, 1.0)]


async def test_closing_ends_what_waits() -> None:
    engine = Engine()
    async with batching(engine) as batcher:
        searched = await behind_a_search(engine, batcher)
        waiting = batcher.submit("waiting", topk=1)
        await batcher.close()
        assert searched.cancelled() and waiting.cancelled()
