"""How a running Ray is joined: the address at which to look for it, and its token."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path

LOOPBACK = "127.0.0.1"
LOCAL = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
"""Ray's own switch for single machines, which it reads at import. With it, everything that Ray starts listens only on
127.0.0.1, and Ray looks for such a cluster there, not at the machine's outer address.
"""

_CONNECT_S = 2.0


def _outer_address() -> str:
    """The address at which other machines know this one; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return probe.getsockname()[0]
        except OSError:
            return LOOPBACK


def on_loopback_alone(address: str) -> bool:
    """Whether the Ray at `address` (HOST:PORT) can be reached only on this machine's loopback."""
    host, _, port = address.rpartition(":")
    if not (host.startswith("127.") or host == "localhost") or not port.isdigit():
        return False
    try:
        with socket.create_connection((_outer_address(), int(port)), timeout=_CONNECT_S) as connected:
            return connected.getpeername()[0].startswith("127.")
    except OSError:
        return True


def has_token(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether Ray joins a cluster with a token: RAY_AUTH_MODE decides, and without it whether there is a token."""
    if mode := environment.get("RAY_AUTH_MODE"):
        return mode.lower() == "token"
    named = environment.get("RAY_AUTH_TOKEN") or environment.get("RAY_AUTH_TOKEN_PATH")
    return bool(named) or (Path.home() / ".ray" / "auth_token").is_file()


def use_loopback(address: str | None) -> None:
    """Keep Ray on loopback, unless it joins a cluster that is not. Must be called before Ray is imported."""
    if not address or on_loopback_alone(address):
        os.environ.update(LOCAL)
