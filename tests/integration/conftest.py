"""One real gateway for all pool tests; its policy, the retriever and the generator are fakes behind real HTTP."""

from collections.abc import Iterator

import pytest

from benchmarks.real_gateway import GatewayApi, real_gateway
from s3_agent.clients.tokenizer import load_tokenizer
from s3_agent.embedded import NANO_POLICY
from s3_agent.rollout.worker.native import WorkerSettings
from s3_agent.testing.fakes import FakeGenerator, FakePolicy, FakeRetriever
from s3_agent.testing.servers import generator_app, policy_app, retriever_app, serve
from tests.pool_harness import NORWAY, SPAIN, reader, searcher, worker_settings


@pytest.fixture(scope="session")
def running_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayApi]:
    policy = FakePolicy(searcher, load_tokenizer(str(NANO_POLICY)))
    with (
        serve(policy_app(policy)) as policy_url,
        real_gateway(tmp_path_factory.mktemp("gateway"), model=str(NANO_POLICY), policy_url=policy_url) as api,
    ):
        yield api


@pytest.fixture
def gateway(running_gateway: GatewayApi) -> Iterator[GatewayApi]:
    """The gateway without the rollouts of other tests."""
    yield running_gateway
    left = running_gateway.http.get("/api/rollouts", params={"state_in": ["queuing", "running"]}).json()
    for rollout in left:
        running_gateway.http.delete(f"/api/rollouts/{rollout['rollout_id']}")


@pytest.fixture(scope="session")
def retriever_url() -> Iterator[str]:
    with serve(retriever_app(FakeRetriever({"currency of Norway": [NORWAY]}, default=[SPAIN]))) as url:
        yield url


@pytest.fixture
def generator() -> FakeGenerator:
    return FakeGenerator(reader)


@pytest.fixture
def worker(retriever_url: str, generator: FakeGenerator) -> Iterator[WorkerSettings]:
    with serve(generator_app(generator)) as url:
        yield worker_settings(retriever_url, url)
