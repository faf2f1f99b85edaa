"""The address at which to look for a running Ray."""

import os
import socket

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


def use_loopback(address: str | None) -> None:
    """Keep Ray on loopback, unless it joins a cluster that is not. Must be called before Ray is imported."""
    if not address or on_loopback_alone(address):
        os.environ.update(LOCAL)
