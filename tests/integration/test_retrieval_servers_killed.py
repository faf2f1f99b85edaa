"""Two real retrieval servers over one index share the load; one is killed in the middle of it, and comes back."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.real_gateway import GatewayApi
from s3_agent.clients.connections import async_client
from s3_agent.clients.retriever import HttpRetriever
from s3_agent.clients.servers import Servers
from s3_agent.data_identity import index_identity
from s3_agent.errors import ConfigError, LaunchError, RetrieverError
from s3_agent.processes.services import require_external
from s3_agent.recipe import load_recipe
from s3_agent.rollout.worker.native import WorkerSettings
from tests.pool_harness import make_supervisor, pool_settings, records, task, until, work
from tests.served_corpus import Restartable, command, free_port, write_corpus

ROWS = [{"id": str(n), "contents": f'"Town {n}"\nThe river of town {n} is river{n}.'} for n in range(200)]
CLIENTS = 16


def served(folder: Path) -> Restartable:
    port = free_port()
    return Restartable(command(folder, port=port), port)


def folder_with(tmp_path: Path, name: str, rows: list[dict[str, str]]) -> Path:
    (tmp_path / name).mkdir()
    write_corpus(tmp_path / name, rows)
    return tmp_path / name


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Restartable, Restartable]]:
    folder = folder_with(tmp_path, "one", ROWS)
    first = served(folder)
    first.ready()  # it has built the index for both
    second = served(folder)
    second.ready()
    yield first, second
    for server in (first, second):
        server.process.send_signal(signal.SIGCONT)
        server.kill()


class Load:
    """Clients that search without a pause, and count what they found and what failed."""

    def __init__(self, retriever: HttpRetriever) -> None:
        self._retriever = retriever
        self.right = 0
        self.failed: list[Exception] = []
        self.ended = asyncio.Event()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for client in range(CLIENTS):
                group.create_task(self._client(client))

    async def _client(self, number: int) -> None:
        while not self.ended.is_set():
            wanted = number % len(ROWS)
            try:
                [passage] = await self._retriever.retrieve(f"river{wanted}", topk=1)
            except RetrieverError as error:
                self.failed.append(error)
            else:
                assert passage.id == str(wanted)
                self.right += 1
            number += CLIENTS

    async def more(self, count: int) -> None:
        goal = self.right + count
        while self.right < goal:
            assert not self.failed, self.failed[0]
            await asyncio.sleep(0.02)


async def test_a_server_killed_under_load_loses_no_request_and_is_used_again(
    pair: tuple[Restartable, Restartable],
) -> None:
    first, second = pair
    async with async_client(timeout=60.0) as http, asyncio.timeout(100):
        load = Load(HttpRetriever(http, f"{first.url},{second.url}"))
        running = asyncio.create_task(load.run())
        await load.more(300)
        assert min(first.requests(), second.requests()) > 50, "both share the load"
        await asyncio.to_thread(second.kill)
        await load.more(300)
        second.start()
        await asyncio.to_thread(second.ready)
        while await asyncio.to_thread(second.requests) < 20:
            await load.more(20)
        await asyncio.to_thread(first.kill)  # and now the other one, whose requests the restarted one takes over
        await load.more(300)
        load.ended.set()
        await running
    assert load.failed == [] and load.right >= 1000


async def test_a_server_that_is_stopped_but_holds_its_connections_loses_no_request(
    pair: tuple[Restartable, Restartable],
) -> None:
    first, second = pair
    async with async_client(timeout=60.0) as http, asyncio.timeout(100):
        retriever = HttpRetriever(http, f"{first.url},{second.url}")
        retriever._client = Servers(http, (first.url, second.url), patrol_s=0.5)
        load = Load(retriever)
        running = asyncio.create_task(load.run())
        await load.more(200)
        second.process.send_signal(signal.SIGSTOP)
        await load.more(200)
        load.ended.set()
        await running
    assert load.failed == []


async def test_servers_with_different_indexes_are_refused_before_anything_starts(
    pair: tuple[Restartable, Restartable], tmp_path: Path
) -> None:
    other = served(folder_with(tmp_path, "other", ROWS[:100]))
    try:
        other.ready()
        recipe = load_recipe("cpu", [f"retriever.url=[{pair[0].url},{other.url}]", "gateway.port=0"])
        both = rf"{pair[0].url} and {other.url} serve different indexes: corpus is .*passages is 200 and 100"
        with pytest.raises(ConfigError, match=both):
            index_identity(recipe)
        with pytest.raises(LaunchError, match=both):
            require_external(recipe, ["retriever"])
        async with async_client(timeout=60.0) as http:
            with pytest.raises(RetrieverError, match=both):
                await HttpRetriever(http, recipe.retriever_url).retrieve("river1", topk=1)
    finally:
        other.kill()
    same = load_recipe("cpu", [f"retriever.url={pair[0].url},{pair[1].url}"])
    require_external(same, ["retriever"])
    assert index_identity(same)["passages"] == len(ROWS)
    with pytest.raises(LaunchError, match=f"the retriever at {other.url}/healthz does not answer"):
        require_external(recipe, ["retriever"])


async def test_a_pool_over_two_servers_loses_no_rollout_and_no_attempt_when_one_is_killed(
    pair: tuple[Restartable, Restartable], gateway: GatewayApi, worker: WorkerSettings, tmp_path: Path
) -> None:
    first, second = pair
    settings = pool_settings(gateway, tmp_path, "two-retrievers")
    ids = gateway.enqueue(*map(task, range(60)))
    both = worker.model_copy(update={"retriever_url": f"{first.url},{second.url}"})

    def kill_in_the_middle() -> None:
        until(lambda: second.requests() > 10)
        second.kill()

    killing = asyncio.create_task(asyncio.to_thread(kill_in_the_middle))
    await work(gateway, ids, make_supervisor(settings, both))
    await killing
    played = records(settings)
    assert {record.state for record in played.values()} == {"succeeded"} and set(played) == set(ids)
    assert [record.failures for record in played.values() if record.failures] == []
    assert first.requests() > 60
