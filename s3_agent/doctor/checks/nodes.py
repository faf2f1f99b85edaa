"""Checks whether the machines of a training on several nodes can do it: what their Ray has, and what each of them sees.

Gateway, workers, retriever and generator run on the machine of the launcher, and nothing on another machine calls them,
so they stay on 127.0.0.1. Ray, and through it the trainer's ranks and the policy servers, must be reachable.
"""

from collections.abc import Iterator

from s3_agent.doctor.case import Case
from s3_agent.doctor.findings import Finding, error, warning
from s3_agent.doctor.limits import RAY_PER_GPU
from s3_agent.machine.ray_nodes import RayNode
from s3_agent.rollout.ray_address import on_loopback_alone

_START = "docs/recipes.md, Two nodes, has the commands"


def check_nodes(case: Case) -> Iterator[Finding]:
    """The Ray at `ray.address` and its nodes, for a recipe that trains on several."""
    training, address = case.training, case.recipe.ray.address
    if training is None or training.nodes == 1 or address is None:
        return
    local, host = on_loopback_alone(address), case.machine.host
    if case.cuda and local:
        yield error(
            "nodes.loopback",
            what=f"trainer.nodes={training.nodes}, but ray.address={address} is on this machine alone",
            why="a Ray that listens on 127.0.0.1 can not be joined by another machine",
            fix=f"start Ray with `--node-ip-address` of the network between the machines ({_START})",
        )
    elif host is not None and not local and not host.ray_token:
        yield warning(
            "nodes.open-ray",
            what=f"the Ray at {address} is joined without a token",
            why="whoever reaches its ports can run any program as you on all nodes",
            fix=f"`ray get-auth-token --generate`, and the same ~/.ray/auth_token on all machines ({_START})",
        )
    if isinstance(case.ray_nodes, str):
        yield error(
            "nodes.unreachable",
            what=f"the nodes of the Ray at {address} could not be asked: {case.ray_nodes}",
            why="the trainer starts its ranks through it",
            fix=f"start it on every machine ({_START})",
        )
    elif case.ray_nodes is not None:
        yield from _found(case, training.nodes, training.gpus, case.ray_nodes)


def _found(case: Case, nodes: int, gpus: int, found: list[RayNode]) -> Iterator[Finding]:
    slots = RAY_PER_GPU * gpus
    fitting = [node for node in found if node.gpus >= gpus and node.cpus >= slots]
    if len(fitting) < nodes:
        has = ", ".join(f"{node.address} has {node.gpus} GPUs and {node.cpus} CPUs" for node in found)
        yield error(
            "nodes.too-few",
            what=f"{nodes} nodes need {gpus} GPUs and {slots} CPUs each: {has}",
            why="verl refuses to start, or waits forever for its placement groups",
            fix=f"ray start --num-gpus={gpus} --num-cpus={slots + 1} on each machine (CPUs are slots, not cores), or "
            "change trainer.nodes and trainer.gpus",
        )
    for node in fitting:
        if not node.sees_runs:
            yield error(
                "nodes.runs",
                what=f"{node.address} does not see {case.recipe.runs.absolute()} of this machine",
                why="every rank writes its shard of a checkpoint there: no run could continue from it, and no policy "
                "could be exported",
                fix="mount a shared folder at the same path on all machines, and set runs=…",
            )
        if not node.has_policy:
            yield error(
                "nodes.policy",
                what=f"{node.address} does not have the folder of policy.model, {case.recipe.policy.model}",
                why="every rank and every policy server loads it from its own machine",
                fix="copy it to the same path, or set policy.model to a hub name",
            )
        here = {name: case.machine.host.packages.get(name) for name in case.pinned} if case.machine.host else {}
        if other := [
            f"{name} {node.packages.get(name, 'is missing')} (here {version})"
            for name, version in here.items()
            if version is not None and node.packages.get(name) != version
        ]:
            yield error(
                "nodes.packages",
                what=f"{node.address} has other packages than this machine: {', '.join(other)}",
                why="Ray sends objects of these packages between the machines",
                fix="run the same release's train.sh on all machines, at the same path",
            )
