"""Checks the environment variables of a shell, a scheduler or a container that can disturb a run.

Variables that the processes of a run do not take over (`s3_agent.machine.inherited`) are not reported, except
RAY_ADDRESS, because the user may have set it for this run.
"""

from collections.abc import Iterator, Mapping

from retrieval_server.proxies import NO_PROXY, usable_proxy
from s3_agent.doctor.case import Case
from s3_agent.doctor.findings import Finding, error, warning
from s3_agent.machine.description import Host
from s3_agent.machine.inherited import MARK, SHORT

PROXIES = ("http_proxy", "https_proxy", "all_proxy")
TRACKERS = ("tensorboard", "wandb")


def check_environment(case: Case) -> Iterator[Finding]:
    """Proxies, Ray, temporary folder, shadowed packages, certificates, network interfaces and trackers."""
    if (host := case.machine.host) is None:
        return
    yield from _proxies(host.environment)
    yield from _ray(case, host)
    yield from _temporary_folder(host)
    yield from _packages(host)
    yield from _files(host)
    yield from _interfaces(case, host)
    yield from _trackers(case, host)


def _proxies(environment: Mapping[str, str]) -> Iterator[Finding]:
    named = {name: value for name, value in environment.items() if value}
    through = {name: value for name, value in named.items() if name.lower() in PROXIES}
    usable = {name for name, value in through.items() if usable_proxy(value)}
    # Some programs read one spelling and some the other, so each spelling that is set must name this machine.
    unproxied = [{part.strip() for part in named[name].split(",")} for name in NO_PROXY if name in named] or [set()]
    if through and not all("*" in parts or {"127.0.0.1", "localhost"} <= parts for parts in unproxied):
        yield warning(
            "host.proxy",
            what=f"{', '.join(sorted(through))} is set, and NO_PROXY, or no_proxy beside it, does not name 127.0.0.1 "
            "and localhost",
            why="our clients and the processes that we start call this machine without a proxy, but programs that you "
            "start (an agent, curl) would ask the proxy for your own gateway",
            fix="export NO_PROXY=127.0.0.1,localhost no_proxy=127.0.0.1,localhost",
        )
    covered = {name.lower() for name in usable}
    if (left := sorted(through.keys() - usable)) and not {"http_proxy", "https_proxy"} <= covered:
        values = ", ".join(f"{name}={_without_password(through[name])}" for name in left)
        yield warning(
            "host.proxy-unusable",
            what=f"Python's HTTP clients can not use {values}",
            why="a SOCKS proxy needs the package socksio, and httpx does not know other schemes; our processes ignore "
            "such a proxy, so downloads and trackers use none",
            fix="pip install 'httpx[socks]' and write the proxy as socks5h://…, or export https_proxy=http://…",
        )


def _without_password(address: str) -> str:
    scheme, mark, rest = address.rpartition("://")
    return scheme + mark + rest.rpartition("@")[2]


def _ray(case: Case, host: Host) -> Iterator[Finding]:
    if (address := host.environment.get("RAY_ADDRESS")) and not case.recipe.ray.address:
        yield warning(
            "host.ray-address",
            what=f"RAY_ADDRESS is {address}, but the recipe names no Ray",
            why="a run reads only the recipe's ray.address: it will start another Ray on this machine",
            fix=f"to train on that Ray: ray.address={address}; otherwise: unset RAY_ADDRESS",
        )


def _temporary_folder(host: Host) -> Iterator[Finding]:
    named, used = host.temporary, host.sockets
    if used is None:
        yield error(
            "host.temporary-folder",
            what=f"the temporary folder {named} has a path of more than {SHORT - MARK} bytes, and neither /tmp nor "
            "/var/tmp can be written to",
            why="Ray and vLLM make sockets below it, and the path of a socket has 107 bytes at most",
            fix="set TMPDIR to a folder that you own, with a short path",
        )
    elif used != named:
        yield warning(
            "host.temporary-folder",
            what=f"the temporary folder {named} has a path of more than {SHORT - MARK} bytes",
            why=f"the path of a socket must be short, so a run's sockets, and the objects that Ray has no memory for, "
            f"are in {used}",
            fix=f"if {used} has little room, set TMPDIR to a folder that you own, with a short path",
        )


def _packages(host: Host) -> Iterator[Finding]:
    for name, folder in host.shadowing.items():
        yield warning(
            "host.shadowed-package",
            what=f"{folder} holds a package {name}",
            why="this folder is on PYTHONPATH or is the current one, so Python imports its package instead of the "
            "installed one, whose version was checked",
            fix=f"take {folder} out of PYTHONPATH, or start from another folder",
        )


def _files(host: Host) -> Iterator[Finding]:
    for name, path in host.missing_certificates.items():
        yield error(
            "host.certificates",
            what=f"{name} names {path}, which does not exist",
            why="httpx and requests read this file before their first call, and fail with a FileNotFoundError",
            fix=f"unset {name}, or install the certificates there",
        )


def _interfaces(case: Case, host: Host) -> Iterator[Finding]:
    """Compares the names as NCCL reads them (prefixes, `=` for a whole name, `^` for all others), and Gloo (whole)."""
    if not case.cuda or not host.interfaces:
        return
    for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        value = host.environment.get(variable, "")
        wanted = [part.strip() for part in value.lstrip("=").split(",") if part.strip()]
        if not wanted or value.startswith("^"):
            continue
        if variable == "GLOO_SOCKET_IFNAME" or value.startswith("="):
            there = all(name in host.interfaces for name in wanted)
        else:
            there = any(found.startswith(name) for name in wanted for found in host.interfaces)
        if not there:
            yield error(
                "host.network-interface",
                what=f"{variable} is {value}, but this machine has {', '.join(sorted(host.interfaces))}",
                why="the ranks search for each other on that interface, and fail when the first group is made",
                fix=f"unset {variable}, or name one of these",
            )


def _trackers(case: Case, host: Host) -> Iterator[Finding]:
    trainer = case.recipe.trainer
    for name in TRACKERS:
        if name in trainer.trackers and name not in host.packages:
            yield error(
                "tracker.missing",
                what=f"trainer.trackers names {name}, which is not installed",
                why="verl imports it only after all other processes are ready",
                fix=f"pip install {name}, or take it out of trainer.trackers",
            )
    if "wandb" in trainer.trackers and trainer.wandb_mode == "online" and not host.wandb_key:
        yield error(
            "tracker.key",
            what="trainer.wandb_mode is online, but there is no key for Weights & Biases",
            why="wandb can not ask for the key, and ends the trainer after all other processes are ready",
            fix="wandb login, or export WANDB_API_KEY=…, or trainer.wandb_mode=offline and `wandb sync` later",
        )


def offline(environment: Mapping[str, str]) -> str | None:
    """The variable that forbids Hugging Face's libraries to use the network; None if neither is set."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if environment.get(name, "").upper() in ("1", "ON", "YES", "TRUE"):
            return name
    return None
