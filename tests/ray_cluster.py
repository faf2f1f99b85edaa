"""A Ray of somebody else's on this machine's loopback, with one or several nodes, each with one logical GPU."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

CPUS = 4
_CLUSTER = """
import os, sys
os.environ.update(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0")
import ray
from ray._common.utils import get_default_ray_temp_dir
from ray.cluster_utils import Cluster
os.makedirs(get_default_ray_temp_dir(), exist_ok=True)  # Cluster writes its address there, whatever `temp_dir` is
folder, nodes, cpus = sys.argv[1:]
node = dict(num_cpus=int(cpus), num_gpus=1, include_dashboard=False, node_ip_address="127.0.0.1", temp_dir=folder)
cluster = Cluster(initialize_head=True, head_node_args=node)
for _ in range(int(nodes) - 1):
    cluster.add_node(**node)
ray.init(address=cluster.address, log_to_driver=False)
print(cluster.address, flush=True)
for _ in sys.stdin:
    print(ray.get(ray.remote(lambda: "alive").remote()), flush=True)
"""


@contextmanager
def ray_cluster(folder: Path, *, nodes: int = 1) -> Iterator[tuple[str, psutil.Popen]]:
    """Its address, and the process that answers `alive` to each line as long as the cluster works.

    `folder` must have a short path, because Ray's sockets are below it; RAY_AUTH_MODE must be `disabled`.
    """
    errors = folder / "errors.log"
    with errors.open("w") as log:
        cluster = psutil.Popen(
            [sys.executable, "-c", _CLUSTER, str(folder), str(nodes), str(CPUS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        address = cluster.stdout.readline().strip()
        assert address, f"Ray did not start: {errors.read_text()[-2000:]}"
        yield address, cluster
    finally:
        cluster.stdin.close()
        cluster.wait(60)
