"""Asks each node of a running Ray what a training on several nodes needs of it. Called by the doctor's `gather`.

Ray reads its environment when it is imported, and prints; so `python -m s3_agent.machine.ray_nodes` asks in a process
of its own. Ray carries the function to the other nodes, which need nothing of this package for it.
"""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from s3_agent.rollout.ray_address import use_loopback

WITHIN_S = 90.0
ANSWERS_WITHIN_S = 60.0


class RayNode(BaseModel):
    """A live node: its address, Ray's slots, and what was found on it.

    `sees_runs` is whether it sees the folder of the runs on this machine, `has_policy` whether a policy in a folder is
    there, `packages` the versions of the named distributions, without those that are not installed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str
    gpus: int
    cpus: int
    sees_runs: bool
    has_policy: bool
    packages: Mapping[str, str]


def ask_nodes(address: str, *, runs: Path, policy: str, packages: Sequence[str]) -> list[RayNode] | str:
    """The live nodes of the Ray at `address`, or why they can not be asked.

    `policy` is a folder, or a hub name, which each node downloads. A file is written below `runs` and deleted again.
    """
    question = json.dumps([address, str(runs.absolute()), policy, list(packages)])
    command = [sys.executable, "-m", "s3_agent.machine.ray_nodes", question]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S)
        return [RayNode.model_validate(row) for row in json.loads(done.stdout.splitlines()[-1])]
    except subprocess.TimeoutExpired:
        return f"it did not answer within {WITHIN_S:.0f} s"
    except (IndexError, ValueError, ValidationError):
        return (done.stderr.strip().splitlines() or ["it gave no answer"])[-1]


def _look(mark: str, policy: str | None, packages: list[str]) -> dict[str, Any]:
    """What this node has. It runs on every node, so it imports only the standard library."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    has_policy = policy is None or os.path.isdir(policy)
    return {"sees_runs": os.path.exists(mark), "has_policy": has_policy, "packages": found}


def main(question: str) -> None:
    """Print one JSON line about all live nodes."""
    address, runs, policy, packages = json.loads(question)
    use_loopback(address)
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.init(address=address, log_to_driver=False)
    mark = Path(runs) / f".seen-{secrets.token_hex(8)}"
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    try:
        look, nodes = ray.remote(num_cpus=0)(_look), [node for node in ray.nodes() if node["Alive"]]
        folder = str(Path(policy).absolute()) if Path(policy).is_dir() else None
        asked = [
            look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                str(mark), folder, packages
            )
            for node in nodes
        ]
        rows = [
            {
                "address": node["NodeManagerAddress"],
                "gpus": int(node["Resources"].get("GPU", 0)),
                "cpus": int(node["Resources"].get("CPU", 0)),
                **seen,
            }
            for node, seen in zip(nodes, ray.get(asked, timeout=ANSWERS_WITHIN_S), strict=True)
        ]
    finally:
        mark.unlink()
    sys.stdout.write(json.dumps(rows) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
