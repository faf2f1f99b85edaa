"""Reserves ports before processes start, and lists a run's open sockets. A taken port is an error that names its
process."""

import socket
from ipaddress import ip_address
from typing import Any

import psutil

from s3_agent.errors import LaunchError
from s3_agent.processes.stack import PART, own_processes
from s3_agent.recipe import HOST


def reserve_port(part: str, port: int, *, or_any: bool = False) -> int:
    """`port` if no process listens on it. Any free port for 0, or, with `or_any`, when `port` is taken.

    Raises LaunchError, which names the process that holds the port.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as cause:
            if or_any:
                return reserve_port(part, 0)
            raise LaunchError(
                f"{part} can not have port {port}: {cause.strerror}{_holder(port)}",
                remedy=f"set {part}.port=0 for any free port, or {part}.url=… to use a service that already runs",
            ) from cause
        return probe.getsockname()[1]


def _holder(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
                if connection.pid is None:
                    return ", held by a process of another user"
                return f", held by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:  # it ended meanwhile, or this system does not report it
        pass
    return ""


def _is_loopback(address: str) -> bool:
    parsed = ip_address(address)
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


def listening(run_id: str) -> list[dict[str, Any]]:
    """Every socket on which the run's processes listen."""
    rows = []
    for process in own_processes(run_id):
        try:
            name, part = process.name(), process.environ().get(PART, "")
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    address, port = connection.laddr
                    row = {"part": part, "process": name, "pid": process.pid, "address": address, "port": port}
                    rows.append({**row, "loopback": _is_loopback(address)})
        except psutil.Error:
            continue
    return sorted(rows, key=lambda row: row["port"])
