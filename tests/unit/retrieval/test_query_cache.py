"""The query cache: what is a hit, who shares a search, and that its memory is bounded."""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_server.backends.bm25.analysis import EnglishAnalyzer
from retrieval_server.batcher import Batcher, Hits, SearchFailed
from retrieval_server.metrics import Metrics
from retrieval_server.query_cache import QueryCache, normalise


class Searches:
    """Stands for the batcher: each submitted query is a future that the test settles."""

    def __init__(self) -> None:
        self.made: list[tuple[str, int, asyncio.Future[Hits]]] = []

    def admit(self, count: int) -> None:
        self.admitted = count

    def submit(self, text: str, *, topk: int) -> asyncio.Future[Hits]:
        future: asyncio.Future[Hits] = asyncio.get_running_loop().create_future()
        self.made.append((text, topk, future))
        return future

    def settle(self) -> None:
        for _, topk, future in self.made:
            if not future.done():
                future.set_result([(row, 1.0) for row in range(topk)])

    @property
    def queries(self) -> list[str]:
        return [text for text, _, _ in self.made]


def cache_over(searches: Any, **options: Any) -> QueryCache:
    return QueryCache(searches, **({"max_bytes": 10**6, "ignores_whitespace": True, "metrics": Metrics()} | options))


async def answered(cache: QueryCache, searches: Searches, *queries: str, topk: int = 3) -> list[Any]:
    asking = asyncio.create_task(cache.answer(queries, topk=topk))
    await asyncio.sleep(0)
    searches.settle()
    return await asking


async def test_a_repeated_query_is_searched_once_and_a_longer_result_serves_a_shorter_one() -> None:
    searches = Searches()
    cache = cache_over(searches)
    assert [len(hits) for hits in await answered(cache, searches, "a", "b", topk=3)] == [3, 3]
    assert [len(hits) for hits in await answered(cache, searches, "b", "c", "a", topk=2)] == [2, 2, 2]
    assert searches.queries == ["a", "b", "c"]
    assert [len(hits) for hits in await answered(cache, searches, "a", topk=4)] == [4]
    assert [len(hits) for hits in await answered(cache, searches, "a", topk=4)] == [4]
    assert searches.queries == ["a", "b", "c", "a"]


async def test_siblings_share_the_search_that_runs() -> None:
    searches = Searches()
    cache = cache_over(searches)
    siblings = [asyncio.create_task(cache.answer(["q", "q"], topk=topk)) for topk in (3, 3, 2)]
    await asyncio.sleep(0)
    assert searches.queries == ["q"] and searches.admitted == 1
    searches.settle()
    found: list[list[Any]] = await asyncio.gather(*siblings)
    assert [[len(hits) for hits in of] for of in found] == [[3, 3], [3, 3], [2, 2]]


async def test_a_search_is_given_up_when_the_last_who_waits_leaves() -> None:
    searches = Searches()
    cache = cache_over(searches)
    siblings = [asyncio.create_task(cache.answer(["q"], topk=3)) for _ in range(2)]
    await asyncio.sleep(0)
    [(_, _, future)] = searches.made
    siblings[0].cancel()
    await asyncio.wait([siblings[0]])
    assert not future.cancelled()
    siblings[1].cancel()
    await asyncio.wait([siblings[1]])
    assert future.cancelled()
    assert await answered(cache, searches, "q") == [[(0, 1.0), (1, 1.0), (2, 1.0)]]


async def test_a_failure_is_not_kept() -> None:
    searches = Searches()
    cache = cache_over(searches)
    asking = asyncio.create_task(cache.answer(["good", "bad"], topk=1))
    await asyncio.sleep(0)
    searches.made[1][2].set_exception(SearchFailed("once"))
    searches.settle()
    with pytest.raises(SearchFailed):
        await asking
    assert await answered(cache, searches, "bad", "good", topk=1) == [[(0, 1.0)], [(0, 1.0)]]
    assert searches.queries == ["good", "bad", "bad"]


async def test_size_0_keeps_nothing_and_shares_nothing() -> None:
    searches = Searches()
    cache = cache_over(searches, max_bytes=0)
    await answered(cache, searches, "q", "q")
    await answered(cache, searches, "q")
    assert searches.queries == ["q"] * 3 and len(cache) == 0


async def test_the_oldest_leaves_first_and_what_is_too_large_is_not_kept() -> None:
    searches = Searches()
    cache = cache_over(searches, max_bytes=3000)
    for query in ("a", "b", "c", "a", "d", "e"):
        await answered(cache, searches, query)
    assert len(cache) == 3
    await answered(cache, searches, "long" * 1000)
    await answered(cache, searches, "a", topk=100)
    await answered(cache, searches, "a", "d", "e")
    assert searches.queries == ["a", "b", "c", "d", "e", "long" * 1000, "a"]


async def test_whitespace_counts_when_the_backend_says_so() -> None:
    for ignores, searched in ((True, 1), (False, 3)):
        searches = Searches()
        cache = cache_over(searches, ignores_whitespace=ignores)
        await answered(cache, searches, "a b", " a  b", "a\tb\n")
        assert len(searches.made) == searched


@pytest.mark.parametrize(
    ("query", "normal"), [("", ""), (" \n", ""), ("a\r\n\tb ", "a b"), ("a\xa0 b", "a\xa0 b"), ("a\x1cb", "a\x1cb")]
)
def test_normalise_touches_ascii_whitespace_only(query: str, normal: str) -> None:
    assert normalise(query) == normal


@settings(deadline=None)
@given(query=st.text(alphabet=" \t\n\rabAB.'é\xa0\x1c1"))
def test_what_is_normalised_finds_the_same_terms(query: str) -> None:
    assert EnglishAnalyzer().terms(normalise(query)) == EnglishAnalyzer().terms(query)


async def test_over_a_real_batcher_equal_queries_are_one_search() -> None:
    batches: list[list[str]] = []

    def search(queries: Any, topk: int) -> list[Hits]:
        batches.append(list(queries))
        return [[(len(query), 1.0)] for query in queries]

    metrics = Metrics()
    batcher = Batcher(search, len, max_cost=100, max_queries=10, max_queued=10, metrics=metrics)
    cache = cache_over(batcher, metrics=metrics)
    await asyncio.gather(*(cache.answer(["sibling"], topk=1) for _ in range(8)))
    await cache.answer(["sibling"], topk=1)
    await batcher.close()
    assert batches == [["sibling"]]
    lines = metrics.text().decode().splitlines()
    for outcome, count in (("miss", 1), ("wait", 7), ("hit", 1)):
        assert f'retrieval_cache_queries_total{{outcome="{outcome}"}} {count}.0' in lines
