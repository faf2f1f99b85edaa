"""Checks whether each service that we start can have its port."""

from collections import Counter
from collections.abc import Iterator

from s3_agent.doctor.case import Case
from s3_agent.doctor.findings import Finding, error, warning

RAY = range(10002, 20000)  # the ports of workers that `ray start` uses


def own_ports(case: Case) -> dict[str, int]:
    """The fixed ports of the services that we start, without port 0 (any free port)."""
    recipe = case.recipe
    ours = {
        "retriever": recipe.retriever.url is None,
        "generator": recipe.generator.hosted and recipe.agent.asks_generator,
        "gateway": recipe.gateway.url is None,
    }
    return {part: port for part, mine in ours.items() if mine and (port := getattr(recipe, part).port)}


def check_ports(case: Case) -> Iterator[Finding]:
    """Ports that are taken, needed twice, or in a range that other programs use."""
    ports, host = own_ports(case), case.machine.host
    for port, count in Counter(ports.values()).items():
        if count > 1:
            parts = " and ".join(part for part, wanted in ports.items() if wanted == port)
            yield error(
                "ports.same",
                what=f"{parts} have the same port {port}",
                why="the second of them can not listen on it",
                fix=f"set {parts.split(' and ')[0]}.port=0 for any free port",
            )
    if host is None:
        return
    for part, port in ports.items():
        if port in host.listening:
            yield error(
                "ports.busy",
                what=f"port {port} of the {part} is held by {host.listening[port]}",
                why="our service can not listen on it",
                fix=f"set {part}.port=0 for any free port, or {part}.url=… to use what runs there",
            )
        elif port < 1024 and not host.root:
            yield error(
                "ports.privileged",
                what=f"port {port} of the {part} is below 1024",
                why="only root may listen on it",
                fix=f"set {part}.port=0 for any free port",
            )
        elif host.ephemeral_ports and host.ephemeral_ports[0] <= port <= host.ephemeral_ports[1]:
            yield warning(
                "ports.ephemeral",
                what=f"port {port} of the {part} is in the kernel's range for outgoing connections",
                why="any connection can take it between this check and the start of the service",
                fix=f"set {part}.port below {host.ephemeral_ports[0]}",
            )
        elif port in RAY and case.recipe.ray.address:
            yield warning(
                "ports.ray",
                what=f"port {port} of the {part} is in the range of Ray's workers",
                why=f"a worker of the Ray at {case.recipe.ray.address} can take it",
                fix=f"set {part}.port outside {RAY.start}-{RAY.stop - 1}",
            )
