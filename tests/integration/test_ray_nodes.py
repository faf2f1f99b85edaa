"""Two Ray nodes on one machine: what the doctor asks them, and where Agent Lightning's task runs."""

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from s3_agent.embedded import NANO_POLICY
from s3_agent.machine.ray_nodes import ask_nodes
from s3_agent.recipe import HOST
from tests.ray_cluster import CPUS, ray_cluster

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

_WHERE = """
import json, sys
from s3_agent.rollout.ray_address import use_loopback
use_loopback(sys.argv[1])
import ray
from s3_agent.agl.train import _OnThisNode
ray.init(address=sys.argv[1], log_to_driver=False)
here = ray.get_runtime_context().get_node_id()

@ray.remote(num_cpus=1)
class Task:
    def where(self):
        return ray.get_runtime_context().get_node_id()

busy = [_OnThisNode(Task).remote() for _ in range(int(sys.argv[2]) - 1)]
ray.get([each.where.remote() for each in busy])
placed = [Task.remote(), _OnThisNode(Task).remote()]
print(json.dumps([where == here for where in ray.get([each.where.remote() for each in placed])]))
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        with ray_cluster(tmp_path_factory.mktemp("r"), nodes=2) as (address, _):
            yield address


def test_each_node_reports_its_slots_and_what_it_sees(address: str, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    nodes = ask_nodes(address, runs=runs, policy=str(NANO_POLICY), packages=["torch", "no-such-package"])
    assert not isinstance(nodes, str), nodes
    assert [(node.address, node.gpus, node.cpus) for node in nodes] == [(HOST, 1, CPUS)] * 2
    assert all(node.sees_runs and node.has_policy for node in nodes)
    assert [dict(node.packages) for node in nodes] == [{"torch": version("torch")}] * 2
    assert list(runs.iterdir()) == [], "the mark is removed"


def test_agent_lightnings_task_runs_where_the_gateway_is(address: str) -> None:
    done = subprocess.run([sys.executable, "-c", _WHERE, address, str(CPUS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [False, True], "Ray prefers the node with more free slots"


def test_a_ray_that_is_not_there_is_told(tmp_path: Path) -> None:
    told = ask_nodes("127.0.0.1:1", runs=tmp_path, policy="a/name", packages=[])
    assert isinstance(told, str) and told
